"""Who may do what: gateway.toml, the rights it gives, the policy that each route declares."""

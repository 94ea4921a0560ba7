"""Who may do what: gateway.toml and the rights that it grants."""

"""Who is calling: API keys, tokens of OIDC issuers, client certificates."""

"""JSON Web Tokens of OIDC issuers."""

"""Responses of deterministic models, kept to be given again (docs/caching.md)."""

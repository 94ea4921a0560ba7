"""How much a caller may ask for: requests, requests at once, tokens; per key, tenant and model."""

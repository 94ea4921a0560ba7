"""Third-party clients against the running stack, each in its own environment."""

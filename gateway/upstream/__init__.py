"""The Triton servers behind the gateway."""

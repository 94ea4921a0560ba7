"""A thin gateway with access control for Triton servers: knows only HTTP and Triton's protocol."""

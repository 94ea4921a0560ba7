"""Check a model repository without a server: what Triton would refuse, and what would cause
trouble."""

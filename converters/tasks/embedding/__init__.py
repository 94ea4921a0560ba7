"""A text -> a vector."""

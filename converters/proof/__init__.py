"""Whether a graph, and what Triton serves of it, kept the original's answers."""

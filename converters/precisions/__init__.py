"""How each precision of an FP32 graph is written, one precision a file; ``write`` is the entry
point."""

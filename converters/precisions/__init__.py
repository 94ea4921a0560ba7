"""How each precision of an FP32 graph is written, one precision a file; ``converters.precision`` is
the entry point."""

"""How each precision of an FP32 graph is written, one idea a file; ``converters.precision`` is the
way in."""

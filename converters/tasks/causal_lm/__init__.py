"""``causal-lm``: a language model that continues a text, in GGUF."""

"""OpenAI's text routes over models that follow the contract of Triton's vLLM backend."""

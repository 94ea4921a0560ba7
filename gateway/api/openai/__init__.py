"""OpenAI's routes: embeddings over pipelines, text over models with the vLLM backend's contract."""

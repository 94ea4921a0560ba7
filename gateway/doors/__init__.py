"""The core's doors: V2, tasks, OpenAI's embeddings; and the document that describes them all."""

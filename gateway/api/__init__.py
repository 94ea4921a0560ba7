"""The core's APIs: V2, tasks, OpenAI's embeddings; and the document that describes them all."""

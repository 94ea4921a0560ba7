"""LitServe with its batching turned on."""
# Its packages are in a separate environment, which mypy does not check.
# mypy: disable-error-code="import-not-found, misc, no-any-return"

from itertools import islice
from typing import Any

import litserve
from minilm import PORT, PROCESSES, MiniLM


class Embedding(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.embed = MiniLM()

    def decode_request(self, request: dict[str, Any]) -> list[str]:
        return list(request["texts"])

    def predict(self, requests: list[list[str]]) -> list[list[list[float]]]:
        vectors = iter(self.embed([text for texts in requests for text in texts]))
        return [list(islice(vectors, len(texts))) for texts in requests]

    def encode_response(self, vectors: list[list[float]]) -> dict[str, object]:
        return {"embeddings": vectors}


if __name__ == "__main__":
    api = Embedding(max_batch_size=16, batch_timeout=0.001)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=PROCESSES)
    server.run(host="127.0.0.1", port=PORT, log_level="warning", generate_client_file=False)

"""LitServe with its batching turned on."""
# Its packages are in a separate environment, which mypy does not check.
# mypy: disable-error-code="import-not-found, misc, no-any-return"

from typing import Any

import litserve
from minilm import PORT, PROCESSES, MiniLM


class Embedding(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.embed = MiniLM()

    def decode_request(self, request: dict[str, Any]) -> str:
        return str(request["text"])

    def predict(self, texts: list[str]) -> list[list[float]]:
        return self.embed(texts)

    def encode_response(self, vector: list[float]) -> dict[str, Any]:
        return {"embedding": vector}


if __name__ == "__main__":
    api = Embedding(max_batch_size=16, batch_timeout=0.001)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=PROCESSES)
    server.run(host="127.0.0.1", port=PORT, log_level="warning", generate_client_file=False)

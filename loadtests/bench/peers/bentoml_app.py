"""BentoML with adaptive batching. A batchable endpoint takes a list; here, of one text."""
# Its packages are in a separate environment, which mypy does not check.
# mypy: disable-error-code="import-not-found, untyped-decorator, no-any-return"

import os
import sys
from pathlib import Path

import bentoml
from minilm import PORT, PROCESSES, MiniLM

# Above this BentoML refuses requests; we measure its speed, not how it sheds load.
LATENCY_MS = 60_000


@bentoml.service(workers=PROCESSES, traffic={"timeout": 60})
class Embedding:
    def __init__(self) -> None:
        self.model = MiniLM()

    @bentoml.api(batchable=True, max_batch_size=16, max_latency_ms=LATENCY_MS, route="/embed")
    def embed(self, texts: list[str]) -> list[list[float]]:
        return self.model(texts)


if __name__ == "__main__":
    command = ["serve", "bentoml_app:Embedding", "--port", str(PORT), "--host", "127.0.0.1"]
    os.chdir(Path(__file__).parent)
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", *command])  # noqa: S606

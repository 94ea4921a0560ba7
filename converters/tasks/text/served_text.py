"""Send texts to a served pipeline as clients do: alone, in batches of mixed lengths, all at
once."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException

from converters.errors import ProofFailed
from modelspec.names import Role, member_name

TIMEOUT_S = 60.0
BATCH = 8
CLIENTS = 16


class ServedText:
    """The pipeline ``model`` behind a gRPC client; ``answer`` is one request."""

    def __init__(self, client: triton.InferenceServerClient, model: str) -> None:
        self._client, self._model = client, model
        self.max_batch_size = int(client.get_model_config(model).config.max_batch_size)

    def answer(
        self, texts: Sequence[str], outputs: Sequence[str], truncate: bool = False
    ) -> dict[str, np.ndarray]:
        """The output tensors for these texts, one row each; ProofFailed when it does not answer."""
        return self._infer(self._model, texts, outputs, truncate)

    def _infer(
        self, model: str, texts: Sequence[str], outputs: Sequence[str], truncate: bool
    ) -> dict[str, np.ndarray]:
        tensor = triton.InferInput("text", [len(texts), 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[text.encode()] for text in texts], dtype=object))
        try:
            result = self._client.infer(
                model,
                [tensor],
                parameters={"truncate": True} if truncate else None,
                client_timeout=TIMEOUT_S,
            )
        except InferenceServerException as error:
            raise ProofFailed(
                f"{model} does not answer {len(texts)} texts that the original answers, the "
                f"first {texts[0][:60]!r}: {error.message()}"
            ) from error
        return {name: result.as_numpy(name) for name in outputs}

    def tokens(self, texts: Sequence[str], truncate: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """``input_ids`` and ``attention_mask`` INT64 [n, bucket] of these texts, from the first
        step of the pipeline alone."""
        names = ("input_ids", "attention_mask")
        tensors = self._infer(member_name(self._model, Role.PRE), texts, names, truncate)
        return tensors["input_ids"], tensors["attention_mask"]

    def rounds(
        self, texts: Sequence[str], outputs: Sequence[str]
    ) -> Iterator[tuple[str, list[Mapping[str, np.ndarray]]]]:
        """Each way of sending the texts, with the output tensors of its requests, in order."""
        alone = [[text] for text in texts]
        for mode, groups, workers in (
            ("alone", alone, 1),
            (f"in batches of {BATCH}", _groups(texts, BATCH), 1),
            (f"in batches of {self.max_batch_size}", _groups(texts, self.max_batch_size), 1),
            (f"{CLIENTS} at a time", alone, CLIENTS),
        ):
            with ThreadPoolExecutor(workers) as pool:
                yield mode, list(pool.map(lambda group: self.answer(group, outputs), groups))


def _groups(texts: Sequence[str], size: int) -> list[Sequence[str]]:
    """Consecutive texts, so that lengths are mixed; the last group may be smaller."""
    return [texts[start : start + size] for start in range(0, len(texts), size)]

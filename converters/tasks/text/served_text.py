"""Send texts to a served pipeline as clients do: alone, in batches of mixed lengths, all at
once."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import numpy as np
from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException

from converters.errors import ProofFailed
from converters.proof.served_client import ServedClient
from modelspec.names import Role, member_name

BATCH = 8
CLIENTS = 16


class ServedText:
    """The pipeline ``model`` behind a gRPC client; ``infer`` is one request."""

    samples: ClassVar[str] = "texts"  # what they are called

    def __init__(self, client: ServedClient, model: str) -> None:
        self._client, self._model = client, model
        self.max_batch_size = int(client.config(model).max_batch_size)

    def infer(
        self, texts: Sequence[str], outputs: Sequence[str], truncate: bool = False
    ) -> dict[str, np.ndarray]:
        """The output tensors for these texts, one row each; ProofFailed when it does not answer."""
        return self._infer(self._model, texts, outputs, truncate)

    def _infer(
        self,
        model: str,
        texts: Sequence[str],
        outputs: Sequence[str],
        truncate: bool = False,
        others: Sequence[triton.InferInput] = (),
    ) -> dict[str, np.ndarray]:
        try:
            result = self._client.infer(
                model, [*self._inputs(texts), *others], {"truncate": True} if truncate else None
            )
        except InferenceServerException as error:
            raise ProofFailed(
                f"{model} does not answer {len(texts)} {self.samples} that the original answers, "
                f"the first {texts[0][:60]!r}: {error.message()}"
            ) from error
        return {name: result.as_numpy(name) for name in outputs}

    def _inputs(self, texts: Sequence[str]) -> list[triton.InferInput]:
        return [text_input("text", texts)]

    def tokens(self, texts: Sequence[str], truncate: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """``input_ids`` and ``attention_mask`` INT64 [n, bucket] of these texts, from the first
        step of the pipeline alone."""
        names = ("input_ids", "attention_mask")
        tensors = self._infer(member_name(self._model, Role.PRE), texts, names, truncate)
        return tensors["input_ids"], tensors["attention_mask"]

    def of_logits(
        self, texts: Sequence[str], logits: Sequence[np.ndarray], outputs: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """The outputs of the last step of a token classifier for these texts and for the
        ``logits`` FP32 [tokens, labels] of each, behind the pipeline's own first step."""
        first, last = (member_name(self._model, role) for role in (Role.PRE, Role.POST))
        spans = self._infer(first, texts, ("token_span",))["token_span"].astype(np.int32)
        others = []
        for name, values in (("logits", padded(logits, spans.shape[1])), ("token_span", spans)):
            dtype = "INT32" if values.dtype == np.int32 else "FP32"
            others.append(triton.InferInput(name, list(values.shape), dtype))
            others[-1].set_data_from_numpy(values)
        return self._infer(last, texts, outputs, others=others)

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
                yield mode, list(pool.map(lambda group: self.infer(group, outputs), groups))


def text_input(name: str, texts: Sequence[str]) -> triton.InferInput:
    """The texts as the input tensor BYTES [n, 1]."""
    tensor = triton.InferInput(name, [len(texts), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text.encode()] for text in texts], dtype=object))
    return tensor


def padded(rows: Sequence[np.ndarray], length: int) -> np.ndarray:
    """Rows FP32 [tokens, labels] of different lengths as one FP32 [n, length, labels]."""
    together = np.zeros((len(rows), length, rows[0].shape[1]), dtype=np.float32)
    for index, row in enumerate(rows):
        together[index, : len(row)] = row
    return together


def _groups(texts: Sequence[str], size: int) -> list[Sequence[str]]:
    """Consecutive texts, so that lengths are mixed; the last group may be smaller."""
    return [texts[start : start + size] for start in range(0, len(texts), size)]

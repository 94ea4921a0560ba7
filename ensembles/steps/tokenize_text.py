"""Tokenise text and pad it to a length bucket (a step that runs inside Triton).

Input ``text`` BYTES [n, 1]; outputs ``input_ids`` and ``attention_mask`` INT64 [n, bucket] and
``token_count`` INT32 [n, 1].

Triton merges only requests of equal shape, so every request is padded to the next of a few lengths
and the engine's dynamic batcher can merge those that share one. A text longer than the model takes
is refused, unless the request says ``truncate`` (a request parameter).

Files beside this module: ``tokenizer.json``. Model parameters: ``buckets``, the lengths in tokens.
"""

import json
from bisect import bisect_left
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

try:  # exists only inside Triton's Python stub
    import triton_python_backend_utils as pb_utils
except ImportError:
    pb_utils = None

# The gateway shows a client only texts that begin with this marker.
INVALID = "[tidegate:invalid_input] "
# Far above any bucket (a token has about 4 bytes), and small enough to tokenise in a blink.
TEXT_LIMIT_BYTES = 65_536


class InvalidText(ValueError):
    """The client's text cannot be tokenised; the message says what to do."""


class BucketTokenizer:
    """A tokenizer that pads to buckets; the last bucket is the longest text allowed, in tokens."""

    def __init__(self, tokenizer: Tokenizer, buckets: list[int], pad_id: int = 0) -> None:
        # tokenizer.json may carry the padding and truncation of its training: ours decide.
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self._buckets = sorted(buckets)
        self._pad_id = pad_id

    def __call__(
        self, texts: list[bytes], truncate: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """ids INT64 [n, bucket], mask INT64 [n, bucket], count INT32 [n, 1] of the texts.

        Raises InvalidText for no text, one that is empty, not UTF-8 or too long.
        """
        if not texts:
            raise InvalidText("there is no text: send at least one")
        rows = [self._ids(index, text, truncate) for index, text in enumerate(texts)]
        count = np.array([len(row) for row in rows], dtype=np.int32)
        length = self._bucket(int(count.max()))
        ids = np.full((len(rows), length), self._pad_id, dtype=np.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
        mask = (np.arange(length) < count[:, None]).astype(np.int64)
        return ids, mask, count[:, None]

    def _ids(self, index: int, text: bytes, truncate: bool) -> list[int]:
        limit = self._buckets[-1]
        # encode, not encode_batch: the latter wakes a thread pool, which costs more than it saves.
        encoding = self._tokenizer.encode(_decoded(index, text))
        if len(encoding.ids) > limit:
            if not truncate:
                raise InvalidText(
                    f"text {index} has {len(encoding.ids)} tokens and the model takes {limit}: "
                    "send a shorter text, or truncate: true to cut it"
                )
            encoding = self._truncated(index, text, limit)
        return list(encoding.ids)

    def _truncated(self, index: int, text: bytes, limit: int) -> Any:
        self._tokenizer.enable_truncation(limit)
        try:
            return self._tokenizer.encode(_decoded(index, text))
        finally:
            self._tokenizer.no_truncation()

    def _bucket(self, length: int) -> int:
        return self._buckets[bisect_left(self._buckets, length)]


def _decoded(index: int, text: bytes) -> str:
    if len(text) > TEXT_LIMIT_BYTES:
        raise InvalidText(f"text {index} has {len(text)} bytes: send at most {TEXT_LIMIT_BYTES}")
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidText(f"text {index} is not UTF-8: encode it as UTF-8") from None
    if not decoded.strip():
        raise InvalidText(f"text {index} is empty: send at least one character")
    return decoded


def wants_truncation(parameters: str) -> bool:
    """Whether the request's parameters (JSON) say ``truncate``."""
    value = json.loads(parameters).get("truncate", False) if parameters else False
    return value is True or str(value).lower() == "true"


class TritonPythonModel:
    """Triton's entry point: requests in, padded token tensors out."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        buckets = [int(length) for length in parameters["buckets"]["string_value"].split(",")]
        folder = Path(args["model_repository"]) / args["model_version"]
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        pad_id = int(parameters.get("pad_id", {}).get("string_value", "0"))
        self._tokenize = BucketTokenizer(tokenizer, buckets, pad_id)

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        texts = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()
        try:
            ids, mask, count = self._tokenize(
                list(texts.reshape(-1)), wants_truncation(request.parameters())
            )
        except InvalidText as error:
            failure = pb_utils.TritonError(f"{INVALID}{error}", pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=failure)
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("input_ids", ids),
                pb_utils.Tensor("attention_mask", mask),
                pb_utils.Tensor("token_count", count),
            ]
        )

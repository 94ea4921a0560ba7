"""Tokenize text and pad it to a length bucket (a step that runs inside Triton).

Input ``text`` BYTES [n, 1]; outputs ``input_ids`` and ``attention_mask`` INT64 [n, bucket],
``token_count`` INT32 [n, 1] and, if the model's config has that output, ``token_span`` INT32
[n, bucket, 2]: where in the text each token begins and ends, in Unicode code points, and -1 for
both where a token is not in the text (special tokens, padding).

Every request is padded to the next of a few lengths. On a GPU, Triton's batcher merges requests of
equal shape, which these lengths make likely; on a CPU the engine cuts the padding off again. A text
longer than the model takes is refused, unless the request has the parameter ``truncate``.

Files beside this module: ``tokenizer.json`` (its truncation says from which side to cut a long
text). Model parameters: ``buckets``, the lengths in tokens, and ``pad_id``.
"""

import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

try:  # exists only inside Triton's Python stub
    import triton_python_backend_utils as pb_utils
except ImportError:
    pb_utils = None

# The gateway forwards to a client only messages that begin with one of these markers, and replaces
# the row by the client's own: a batch here may be a part of the client's.
INVALID, INVALID_ROW = "[tidegate:invalid_input] ", "[tidegate:invalid_input row={}] "
# Far above any bucket (a token has about 4 bytes), and small enough to tokenize in no time.
TEXT_LIMIT_BYTES = 65_536


class InvalidText(ValueError):
    """The client's text cannot be tokenized; the message says what to do.

    ``row`` is its index in the batch, None when the error concerns the whole batch.
    """

    def __init__(self, problem: str, row: int | None = None) -> None:
        super().__init__(problem if row is None else f"text {row} {problem}")
        self.row, self.problem = row, problem

    @property
    def for_client(self) -> str:
        """The message for Triton, with the gateway's marker."""
        if self.row is None:
            return f"{INVALID}{self.problem}"
        return f"{INVALID_ROW.format(self.row)}the text {self.problem}"


@dataclass(frozen=True)
class Tokens:
    """``ids`` and ``mask`` INT64 [n, bucket], ``count`` INT32 [n, 1]."""

    ids: np.ndarray
    mask: np.ndarray
    count: np.ndarray
    encodings: Sequence[Any]

    def span(self) -> np.ndarray:
        """INT32 [n, bucket, 2]: start and end of each token in its text; -1 if it is not in it."""
        span = np.full((*self.ids.shape, 2), -1, dtype=np.int32)
        for row, encoding in zip(span, self.encodings, strict=True):
            of_text = np.array(encoding.special_tokens_mask) == 0
            row[: len(of_text)][of_text] = np.array(encoding.offsets)[of_text]
        return span


class BucketTokenizer:
    """A tokenizer that pads to buckets; the last is the longest text allowed. All in tokens."""

    def __init__(self, tokenizer: Tokenizer, buckets: list[int], pad_id: int = 0) -> None:
        # tokenizer.json may have the padding and truncation of training: the buckets replace them,
        # except for the side that a text is cut from.
        self._cut_from = (tokenizer.truncation or {}).get("direction", "right")
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self._buckets = sorted(buckets)
        self._pad_id = pad_id

    def __call__(self, texts: list[bytes], truncate: bool) -> Tokens:
        """The tokens of the texts; raises InvalidText without a text, and for one that is empty,
        not UTF-8 or too long."""
        if not texts:
            raise InvalidText("there is no text: send at least one")
        rows = [self._encoding(index, text, truncate) for index, text in enumerate(texts)]
        count = np.array([len(row.ids) for row in rows], dtype=np.int32)
        length = self._bucket(int(count.max()))
        ids = np.full((len(rows), length), self._pad_id, dtype=np.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row.ids)] = row.ids
        mask = (np.arange(length) < count[:, None]).astype(np.int64)
        return Tokens(ids, mask, count[:, None], rows)

    def _encoding(self, index: int, text: bytes, truncate: bool) -> Any:
        limit = self._buckets[-1]
        # Not encode_batch: it wakes a thread pool, which costs more than it saves.
        encoding = self._tokenizer.encode(_decoded(index, text))
        if len(encoding.ids) > limit:
            if not truncate:
                raise InvalidText(
                    f"has {len(encoding.ids)} tokens and the model takes {limit}: "
                    "send a shorter text, or truncate: true to cut it",
                    index,
                )
            encoding = self._truncated(index, text, limit)
        return encoding

    def _truncated(self, index: int, text: bytes, limit: int) -> Any:
        self._tokenizer.enable_truncation(limit, direction=self._cut_from)
        try:
            return self._tokenizer.encode(_decoded(index, text))
        finally:
            self._tokenizer.no_truncation()

    def _bucket(self, length: int) -> int:
        return self._buckets[bisect_left(self._buckets, length)]


def _decoded(index: int, text: bytes) -> str:
    if len(text) > TEXT_LIMIT_BYTES:
        raise InvalidText(f"has {len(text)} bytes: send at most {TEXT_LIMIT_BYTES}", index)
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidText("is not UTF-8: encode it as UTF-8", index) from None
    if not decoded.strip():
        raise InvalidText("is empty: send at least one character", index)
    return decoded


def wants_truncation(parameters: str) -> bool:
    """Whether the request's parameters (JSON, or "") set ``truncate``."""
    value = json.loads(parameters).get("truncate", False) if parameters else False
    return value is True or str(value).lower() == "true"


class TritonPythonModel:
    """Triton's entry point: requests in, padded token tensors out."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        parameters = config["parameters"]
        self._has_spans = "token_span" in {output["name"] for output in config["output"]}
        buckets = [int(length) for length in parameters["buckets"]["string_value"].split(",")]
        folder = Path(args["model_repository"]) / args["model_version"]
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        pad_id = int(parameters.get("pad_id", {}).get("string_value", "0"))
        self._tokenize = BucketTokenizer(tokenizer, buckets, pad_id)

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        texts = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()
        try:
            tokens = self._tokenize(list(texts.reshape(-1)), wants_truncation(request.parameters()))
        except InvalidText as error:
            failure = pb_utils.TritonError(error.for_client, pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=failure)
        outputs = [
            pb_utils.Tensor("input_ids", tokens.ids),
            pb_utils.Tensor("attention_mask", tokens.mask),
            pb_utils.Tensor("token_count", tokens.count),
        ]
        if self._has_spans:
            outputs.append(pb_utils.Tensor("token_span", tokens.span()))
        return pb_utils.InferenceResponse(outputs)

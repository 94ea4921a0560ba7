"""Tokenize pairs of texts and pad them to a length bucket (a step that runs inside Triton).

Inputs ``query`` and ``text`` BYTES [n, 1]; outputs ``input_ids`` and ``attention_mask`` INT64
[n, bucket], ``token_count`` INT32 [n, 1] and, if the model's config has that output,
``token_type_ids`` INT64 [n, bucket]: 1 for the tokens of ``text``.

Buckets, the refusal of pairs that are too long and ``truncate`` are those of ``tokenize_text``; a
pair that is cut loses tokens from the longer of its two texts.

Files beside this module: ``tokenizer.json`` (its truncation says from which side to cut). Model
parameters: ``buckets``, the lengths in tokens, and ``pad_id``.
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

# The gateway forwards to a client only messages that begin with this marker, and replaces the row
# by the client's own: a batch here may be a part of the client's.
INVALID_ROW = "[tidegate:invalid_input row={}] "
# Far above any bucket (a token has about 4 bytes), and small enough to tokenize in no time.
TEXT_LIMIT_BYTES = 65_536


class InvalidPair(ValueError):
    """The client's pair cannot be tokenized; the message says what to do. ``row`` is its index in
    the batch."""

    def __init__(self, problem: str, row: int) -> None:
        super().__init__(f"pair {row}: {problem}")
        self.row, self.problem = row, problem

    @property
    def for_client(self) -> str:
        """The message for Triton, with the gateway's marker."""
        return f"{INVALID_ROW.format(self.row)}{self.problem}"


class PairTokenizer:
    """A tokenizer that pads pairs to buckets; the last is the longest pair allowed. All in
    tokens."""

    def __init__(self, tokenizer: Tokenizer, buckets: list[int], pad_id: int = 0) -> None:
        # tokenizer.json may have the padding and truncation of training: the buckets replace them,
        # except for the side that a text is cut from.
        self._cut_from = (tokenizer.truncation or {}).get("direction", "right")
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self._buckets = sorted(buckets)
        self._pad_id = pad_id

    def __call__(
        self, queries: list[bytes], texts: list[bytes], truncate: bool
    ) -> dict[str, np.ndarray]:
        """The step's outputs, ``token_type_ids`` included; raises InvalidPair for a text that is
        empty or not UTF-8, and for a pair that is too long."""
        rows = [
            self._encoding(index, query, text, truncate)
            for index, (query, text) in enumerate(zip(queries, texts, strict=True))
        ]
        count = np.array([len(row.ids) for row in rows], dtype=np.int32)
        length = self._buckets[bisect_left(self._buckets, int(count.max()))]
        ids = np.full((len(rows), length), self._pad_id, dtype=np.int64)
        types = np.zeros((len(rows), length), dtype=np.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row.ids)] = row.ids
            types[index, : len(row.ids)] = row.type_ids
        mask = (np.arange(length) < count[:, None]).astype(np.int64)
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "token_type_ids": types,
            "token_count": count[:, None],
        }

    def _encoding(self, index: int, query: bytes, text: bytes, truncate: bool) -> Any:
        limit = self._buckets[-1]
        pair = _decoded(index, "query", query), _decoded(index, "text", text)
        # Not encode_batch: it wakes a thread pool, which costs more than it saves.
        encoding = self._tokenizer.encode(*pair)
        if len(encoding.ids) <= limit:
            return encoding
        if not truncate:
            raise InvalidPair(
                f"the query and the text have {len(encoding.ids)} tokens together and the model "
                f"takes {limit}: send shorter ones, or truncate: true to cut them",
                index,
            )
        self._tokenizer.enable_truncation(limit, strategy="longest_first", direction=self._cut_from)
        try:
            return self._tokenizer.encode(*pair)
        finally:
            self._tokenizer.no_truncation()


def _decoded(index: int, name: str, text: bytes) -> str:
    if len(text) > TEXT_LIMIT_BYTES:
        raise InvalidPair(
            f"the {name} has {len(text)} bytes: send at most {TEXT_LIMIT_BYTES}", index
        )
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidPair(f"the {name} is not UTF-8: encode it as UTF-8", index) from None
    if not decoded.strip():
        raise InvalidPair(f"the {name} is empty: send at least one character", index)
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
        self._outputs = [output["name"] for output in config["output"]]
        buckets = [int(length) for length in parameters["buckets"]["string_value"].split(",")]
        folder = Path(args["model_repository"]) / args["model_version"]
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        pad_id = int(parameters.get("pad_id", {}).get("string_value", "0"))
        self._tokenize = PairTokenizer(tokenizer, buckets, pad_id)

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        queries, texts = (
            list(pb_utils.get_input_tensor_by_name(request, name).as_numpy().reshape(-1))
            for name in ("query", "text")
        )
        try:
            tensors = self._tokenize(queries, texts, wants_truncation(request.parameters()))
        except InvalidPair as error:
            failure = pb_utils.TritonError(error.for_client, pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=failure)
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, tensors[name]) for name in self._outputs]
        )

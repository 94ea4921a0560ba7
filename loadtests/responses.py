"""Checks of the answers: a load test that only counts them would praise a broken server."""

import base64
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

DIMENSIONS = 384
NORM_TOLERANCE = 1e-3
# Vectors of the same text differ only by rounding (dot product 0.99999); texts swapped within a
# batch are far below this, and dynamic INT8 stays above it.
SAME_TEXT = 0.97
Reader = Callable[[Any], list[Any]]


class WrongResponse(Exception):
    """The answer is wrong. The same fault always has the same message, because Locust groups by it;
    so it never contains a request id."""


class KnownVectors:
    """Remembers the first vector of each text: through whichever API and batch the text is sent
    later, it must get that vector again. This detects answers that go to the wrong caller."""

    def __init__(self) -> None:
        self._first: dict[str, np.ndarray] = {}

    def check(self, texts: Sequence[str], vectors: np.ndarray) -> None:
        """Raises WrongResponse unless there is one valid vector per text, in the texts' order."""
        if vectors.shape != (len(texts), DIMENSIONS):
            raise WrongResponse(f"vectors of shape {vectors.shape} for {len(texts)} texts")
        norms = np.linalg.norm(vectors, axis=1)
        if not np.allclose(norms, 1, rtol=0, atol=NORM_TOLERANCE):  # NaN is not close either
            raise WrongResponse("a vector is not of unit length")
        for text, vector in zip(texts, vectors, strict=True):
            if float(vector @ self._first.setdefault(text, vector)) < SAME_TEXT:
                raise WrongResponse("a text got a different vector than before")


def read(status: int, content: bytes | None, reader: Reader) -> np.ndarray:
    """The vectors in an HTTP answer, FP32 [n, 384]; raises WrongResponse if it has none."""
    if status != 200:
        raise WrongResponse(
            f"HTTP {status}: {_error_text(content)}" if status else "no HTTP answer"
        )
    try:
        return np.asarray(reader(json.loads(content or b"")), dtype=np.float32)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise WrongResponse(f"an answer of a different shape ({type(error).__name__})") from error


def task_rows(body: Any) -> list[object]:
    return [body["embedding"]]


def openai_rows(body: Any) -> list[object]:
    """Base64, which the stock ``openai`` client asks for; the order is that of ``index``."""
    if [entry["index"] for entry in body["data"]] != list(range(len(body["data"]))):
        raise ValueError("the answers are not in order")
    return [np.frombuffer(base64.b64decode(entry["embedding"]), "<f4") for entry in body["data"]]


def v2_rows(body: Any) -> list[object]:
    (output,) = body["outputs"]  # we request one
    return [
        np.asarray(output["data"]).reshape(output["shape"])[row]
        for row in range(output["shape"][0])
    ]


def _error_text(content: bytes | None) -> str:
    """The message in an error of any of the APIs, without its request id."""
    try:
        body = json.loads(content or b"")
        error = body.get("detail") or body.get("error")
        text = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, AttributeError, KeyError):
        text = "(not one of the gateway's errors)"
    return re.sub(r" \(request [^)]*\)", "", text)[:160]

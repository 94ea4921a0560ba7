"""Logits -> the likeliest labels with their scores (a step that runs inside Triton).

Input ``logits`` FP32 [n, classes]; outputs ``label`` BYTES [n, k] and ``score`` FP32 [n, k], the
likeliest first. Scores are the softmax over all classes or, where labels do not exclude each other,
the sigmoid of each; a regression's scores are the numbers themselves.

Files beside this module: ``labels.txt``, one name per line. Model parameters: ``top_k`` and, if it
is not softmax, ``function``.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

try:  # exists only inside Triton's Python stub
    import triton_python_backend_utils as pb_utils
except ImportError:
    pb_utils = None


def _softmax(logits: np.ndarray) -> np.ndarray:
    """FP32 [n, classes], each row adding up to 1."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True), dtype=np.float32)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    """FP32 [n, classes], each element on its own."""
    return np.asarray(0.5 * (1 + np.tanh(logits.astype(np.float64) / 2)), dtype=np.float32)


def _none(logits: np.ndarray) -> np.ndarray:
    """FP32 [n, classes], unchanged: the output of a regression is not a probability."""
    return logits.astype(np.float32)


FUNCTIONS = {"softmax": _softmax, "sigmoid": _sigmoid, "none": _none}


class TopLabels:
    """Names the ``k`` likeliest of the classes; ``labels`` are in the model's order."""

    def __init__(self, labels: list[str], k: int, function: str = "softmax") -> None:
        if function not in FUNCTIONS:
            raise ValueError(f"function is {function!r}: use one of {', '.join(FUNCTIONS)}")
        if not 1 <= k <= len(labels):
            raise ValueError(f"top_k is {k}: give 1 to {len(labels)}, the number of labels")
        self._labels = np.array([label.encode() for label in labels], dtype=object)
        self._k = k
        self._scores = FUNCTIONS[function]

    def __call__(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """label object (bytes) [n, k] and score FP32 [n, k] of logits FP32 [n, classes].

        Raises ValueError for logits that are not finite, or not one for each label.
        """
        if logits.ndim != 2 or logits.shape[1] != len(self._labels):
            raise ValueError(f"the engine returned {logits.shape}, not [n, {len(self._labels)}]")
        if not np.isfinite(logits).all():
            raise ValueError("the engine returned numbers that are not finite")
        scores = self._scores(logits)
        # Stable: of two equal scores, the earlier class always comes first.
        best = np.argsort(-scores, axis=1, kind="stable")[:, : self._k]
        return self._labels[best], np.take_along_axis(scores, best, axis=1)


class TritonPythonModel:
    """Triton's entry point: logits in, labels and scores out."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        folder = Path(args["model_repository"]) / args["model_version"]
        labels = (folder / "labels.txt").read_text(encoding="utf-8").splitlines()
        function = parameters.get("function", {}).get("string_value", "softmax")
        self._top_labels = TopLabels(labels, int(parameters["top_k"]["string_value"]), function)

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        logits = pb_utils.get_input_tensor_by_name(request, "logits").as_numpy()
        try:
            label, score = self._top_labels(logits)
        except ValueError as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor("label", label), pb_utils.Tensor("score", score)]
        )

"""Logits -> the likeliest labels with their scores (a step that runs inside Triton).

Input ``logits`` FP32 [n, classes]; outputs ``label`` BYTES [n, k] and ``score`` FP32 [n, k], the
likeliest first. Scores are the softmax over all classes.

Files beside this module: ``labels.txt``, one name a line. Model parameters: ``top_k``.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

try:  # exists only inside Triton's Python stub
    import triton_python_backend_utils as pb_utils
except ImportError:
    pb_utils = None


class TopLabels:
    """Names the ``k`` likeliest of the classes; ``labels`` are in the model's order."""

    def __init__(self, labels: list[str], k: int) -> None:
        if not 1 <= k <= len(labels):
            raise ValueError(f"top_k is {k}: give 1 to {len(labels)}, the number of labels")
        self._labels = np.array([label.encode() for label in labels], dtype=object)
        self._k = k

    def __call__(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """label object (bytes) [n, k] and score FP32 [n, k] of logits FP32 [n, classes].

        Raises ValueError when the logits are not one for each label, or not finite.
        """
        if logits.ndim != 2 or logits.shape[1] != len(self._labels):
            raise ValueError(f"the engine gave {logits.shape}, not [n, {len(self._labels)}]")
        if not np.isfinite(logits).all():
            raise ValueError("the engine gave numbers that are not finite")
        scores = _softmax(logits)
        # Stable: of two equal scores the earlier class comes first, every time.
        best = np.argsort(-scores, axis=1, kind="stable")[:, : self._k]
        return self._labels[best], np.take_along_axis(scores, best, axis=1)


def _softmax(logits: np.ndarray) -> np.ndarray:
    """FP32 [n, classes], each row adding up to 1."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float32)


class TritonPythonModel:
    """Triton's entry point: logits in, labels and scores out."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        folder = Path(args["model_repository"]) / args["model_version"]
        labels = (folder / "labels.txt").read_text(encoding="utf-8").splitlines()
        self._name = TopLabels(labels, int(parameters["top_k"]["string_value"]))

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        logits = pb_utils.get_input_tensor_by_name(request, "logits").as_numpy()
        try:
            label, score = self._name(logits)
        except ValueError as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor("label", label), pb_utils.Tensor("score", score)]
        )

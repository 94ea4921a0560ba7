"""Prove the last step of a served classifier, ``NAME_post``, by itself: it names every class, and
its scores are those of the model's function.

Whatever a precision rounds off the logits, what the step makes of them is exact: another
temperature or a second softmax could hide in the tolerance of 8 bits.
"""

import numpy as np
from tritonclient import grpc as triton

from converters.proof.attempt import attempted
from converters.proof.checks import Check, at_most, worst_difference
from converters.proof.reference import Reference
from converters.proof.scores import FUNCTIONS
from converters.proof.served_client import ServedClient
from modelspec.names import Role, member_name

NAME = "labels and scores of every class"
ROWS = 8
SCORE = 1e-6  # between two computations of a softmax of the same FP32 numbers


def label_checks(client: ServedClient, reference: Reference) -> list[Check]:
    """The step of ``reference`` on logits that have each class among the likeliest of some row."""
    labels = reference.metadata["labels"]
    top_k = reference.metadata.get("top_k", len(labels))
    probes = _probes(len(labels), top_k)
    return attempted(NAME, lambda: [_labels(client, reference, probes, top_k)])


def _probes(labels: int, top_k: int) -> np.ndarray:
    """Logits FP32 [n, labels], no two neighbours equal, with every class among the ``top_k``
    likeliest of some row: row r has its highest logit at class r * top_k and falls from there. The
    last row has only negative numbers."""
    firsts = np.arange(0, labels, top_k)[:, None]
    rows = 2 - 4 * ((np.arange(labels) - firsts) % labels) / labels
    return np.asarray(np.concatenate([rows, rows[:1] - 3]), dtype=np.float32)


def _labels(client: ServedClient, reference: Reference, probes: np.ndarray, top_k: int) -> Check:
    labels, score = reference.metadata["labels"], FUNCTIONS[reference.metadata["function"]]
    for start in range(0, len(probes), ROWS):
        rows = probes[start : start + ROWS]
        best = np.argsort(-rows, axis=1, kind="stable")[:, :top_k]
        label, actual_scores = _labelled(client, reference, rows)
        expected = np.array([labels[index].encode() for index in best.flat], dtype=object)
        expected = expected.reshape(best.shape)
        if label.shape != expected.shape:
            return at_most(NAME, 1, 0, f"shape {label.shape}, not {expected.shape}")
        if (label != expected).any():
            row, column = np.argwhere(label != expected)[0]
            worst = f"class {best[row, column]} is called {label[row, column]!r}, "
            return at_most(NAME, 1, 0, f"{worst}original {expected[row, column]!r}")
        scores = np.take_along_axis(score(rows.astype(np.float64)), best, axis=1)
        check = worst_difference(
            NAME, actual_scores, scores, SCORE, [f"class {i}" for i in best[:, 0]]
        )
        if not check.passed:
            return check
    return at_most(NAME, 0, 0)


def _labelled(
    client: ServedClient, reference: Reference, logits: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    tensor = triton.InferInput("logits", list(logits.shape), "FP32")
    tensor.set_data_from_numpy(logits)
    result = client.infer(member_name(reference.name, Role.POST), [tensor])
    return result.as_numpy("label"), result.as_numpy("score")

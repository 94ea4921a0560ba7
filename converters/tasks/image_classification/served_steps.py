"""Checks of a served image classifier's steps by themselves: ``NAME_pre`` and ``NAME_post``."""

from collections.abc import Callable, Sequence

import numpy as np
from tritonclient import grpc as triton

from converters.proof.checks import Check, at_most, worst_difference
from converters.proof.reference import Reference
from converters.proof.scores import FUNCTIONS
from converters.tasks.image_classification.checks import checked, image_names
from modelspec.names import Role, member_name

TIMEOUT_S = 60.0
ROWS = 8
# In units of the largest pixel. Both sides decode with Pillow, so only the last bits of FP32 may
# differ. The smallest mistake, one grey level, is a hundred times as much.
PIXEL = 1e-5
SCORE = 1e-6  # between two computations of a softmax of the same FP32 numbers


def pixel_checks(
    client: triton.InferenceServerClient, reference: Reference, images: Sequence[bytes]
) -> list[Check]:
    """The decoder returns the pixels of the original's processor, alone and in a batch."""
    return [
        checked("pixels, one per request", _pixels(client, reference, images, 1)),
        checked(f"pixels, {ROWS} per request", _pixels(client, reference, images, ROWS)),
    ]


def _pixels(
    client: triton.InferenceServerClient, reference: Reference, images: Sequence[bytes], rows: int
) -> Callable[[str], Check]:
    def measure(name: str) -> Check:
        expected, names = reference.answers["pixels"], image_names(reference)
        limit = PIXEL * max(1.0, float(np.abs(expected).max()))
        checks = [
            worst_difference(
                name,
                _decoded(client, reference, images[start : start + rows]),
                expected[start : start + rows],
                limit,
                names[start : start + rows],
            )
            for start in range(0, len(images), rows)
        ]
        # The largest of the failed checks, else of all; NaN would not compare.
        return max(checks, key=lambda check: (not check.passed, np.nan_to_num(check.measured)))

    return measure


def _decoded(
    client: triton.InferenceServerClient, reference: Reference, images: Sequence[bytes]
) -> np.ndarray:
    tensor = triton.InferInput("image", [len(images), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[image] for image in images], dtype=object))
    result = client.infer(member_name(reference.name, Role.PRE), [tensor], client_timeout=TIMEOUT_S)
    return np.asarray(result.as_numpy("pixels"))


def label_checks(client: triton.InferenceServerClient, reference: Reference) -> list[Check]:
    """The labeller names every class correctly, and its scores are those of the function."""
    probes = _probes(len(reference.metadata["labels"]), reference.metadata["top_k"])
    return [checked("labels and scores of every class", _labels(client, reference, probes))]


def _probes(labels: int, top_k: int) -> np.ndarray:
    """Logits FP32 [n, labels], no two neighbours equal, with every class among the ``top_k``
    likeliest of some row: row r has its highest logit at class r * top_k and falls from there."""
    firsts = np.arange(0, labels, top_k)[:, None]
    return (2 - 4 * ((np.arange(labels) - firsts) % labels) / labels).astype(np.float32)


def _labels(
    client: triton.InferenceServerClient, reference: Reference, probes: np.ndarray
) -> Callable[[str], Check]:
    labels, top_k = reference.metadata["labels"], reference.metadata["top_k"]
    score = FUNCTIONS[reference.metadata["function"]]

    def measure(name: str) -> Check:
        for start in range(0, len(probes), ROWS):
            rows = probes[start : start + ROWS]
            best = np.argsort(-rows, axis=1, kind="stable")[:, :top_k]
            label, actual_scores = _labelled(client, reference, rows)
            expected = np.array([labels[index].encode() for index in best.flat], dtype=object)
            expected = expected.reshape(best.shape)
            if label.shape != expected.shape:
                return at_most(name, 1, 0, f"shape {label.shape}, not {expected.shape}")
            if (label != expected).any():
                row, column = np.argwhere(label != expected)[0]
                worst = f"class {best[row, column]} is called {label[row, column]!r}, "
                return at_most(name, 1, 0, f"{worst}original {expected[row, column]!r}")
            scores = np.take_along_axis(score(rows.astype(np.float64)), best, axis=1)
            check = worst_difference(
                name, actual_scores, scores, SCORE, [f"class {i}" for i in best[:, 0]]
            )
            if not check.passed:
                return check
        return at_most(name, 0, 0)

    return measure


def _labelled(
    client: triton.InferenceServerClient, reference: Reference, logits: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    tensor = triton.InferInput("logits", list(logits.shape), "FP32")
    tensor.set_data_from_numpy(logits)
    result = client.infer(
        member_name(reference.name, Role.POST), [tensor], client_timeout=TIMEOUT_S
    )
    return result.as_numpy("label"), result.as_numpy("score")

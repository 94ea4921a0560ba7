"""The steps of a served image classifier, each asked by itself: ``NAME_pre`` and ``NAME_post``."""

from collections.abc import Callable, Sequence

import numpy as np
from tritonclient import grpc as triton

from converters.image.proof import case_names, checked
from converters.proof import Check, at_most, worst_difference
from converters.task import Reference
from converters.text.classification_proof import FUNCTIONS

TIMEOUT_S = 60.0
ROWS = 8
# Both sides decode with Pillow, so that only the last bits of FP32 may differ, of the largest
# pixel. The smallest mistake, one grey level, is a hundred times as much.
PIXEL = 1e-5
SCORE = 1e-6  # of one softmax of the same FP32 numbers


def pixel_checks(
    client: triton.InferenceServerClient, reference: Reference, images: Sequence[bytes]
) -> list[Check]:
    """The decoder gives the pixels of the original's processor, alone and in a batch."""
    return [
        checked("pixels, one a request", _pixels(client, reference, images, 1)),
        checked(f"pixels, {ROWS} a request", _pixels(client, reference, images, ROWS)),
    ]


def _pixels(
    client: triton.InferenceServerClient, reference: Reference, images: Sequence[bytes], rows: int
) -> Callable[[str], Check]:
    def measure(name: str) -> Check:
        wanted, names = reference.answers["pixels"], case_names(reference)
        limit = PIXEL * max(1.0, float(np.abs(wanted).max()))
        worst = [
            worst_difference(
                name,
                _decoded(client, reference, images[start : start + rows]),
                wanted[start : start + rows],
                limit,
                names[start : start + rows],
            )
            for start in range(0, len(images), rows)
        ]
        # A check that failed, and then the largest; NaN compares with nothing.
        return max(worst, key=lambda check: (not check.passed, np.nan_to_num(check.measured)))

    return measure


def _decoded(
    client: triton.InferenceServerClient, reference: Reference, images: Sequence[bytes]
) -> np.ndarray:
    tensor = triton.InferInput("image", [len(images), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[picture] for picture in images], dtype=object))
    result = client.infer(f"{reference.name}_pre", [tensor], client_timeout=TIMEOUT_S)
    return np.asarray(result.as_numpy("pixels"))


def label_checks(client: triton.InferenceServerClient, reference: Reference) -> list[Check]:
    """The labeller names every class in its place, and its scores are those of the function."""
    probes = _probes(len(reference.metadata["labels"]), reference.metadata["top_k"])
    return [checked("labels and scores of every class", _labels(client, reference, probes))]


def _probes(labels: int, top_k: int) -> np.ndarray:
    """Logits FP32 [n, labels], none equal to its neighbour, among whose ``top_k`` likeliest is
    every class: row r begins with class r * top_k and falls from there on."""
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
            label, got = _labelled(client, reference, rows)
            wanted = np.array([labels[place].encode() for place in best.flat], dtype=object)
            wanted = wanted.reshape(best.shape)
            if label.shape != wanted.shape:
                return at_most(name, 1, 0, f"shape {label.shape}, not {wanted.shape}")
            if (label != wanted).any():
                row, column = np.argwhere(label != wanted)[0]
                worst = f"class {best[row, column]} is called {label[row, column]!r}, "
                return at_most(name, 1, 0, f"{worst}original {wanted[row, column]!r}")
            scores = np.take_along_axis(score(rows.astype(np.float64)), best, axis=1)
            check = worst_difference(name, got, scores, SCORE, [f"class {i}" for i in best[:, 0]])
            if not check.passed:
                return check
        return at_most(name, 0, 0)

    return measure


def _labelled(
    client: triton.InferenceServerClient, reference: Reference, logits: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    tensor = triton.InferInput("logits", list(logits.shape), "FP32")
    tensor.set_data_from_numpy(logits)
    result = client.infer(f"{reference.name}_post", [tensor], client_timeout=TIMEOUT_S)
    return result.as_numpy("label"), result.as_numpy("score")

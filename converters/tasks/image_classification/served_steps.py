"""Checks of a served image classifier's first step by itself: ``NAME_pre``."""

from collections.abc import Callable, Sequence

import numpy as np
from tritonclient import grpc as triton

from converters.proof.checks import Check, worst_difference
from converters.proof.reference import Reference
from converters.proof.served_client import ServedClient
from converters.tasks.image_classification.checks import checked, image_names
from modelspec.names import Role, member_name

ROWS = 8
# In units of the largest pixel. Both sides decode with Pillow, so only the last bits of FP32 may
# differ. The smallest mistake, one grey level, is a hundred times as much.
PIXEL = 1e-5


def pixel_checks(
    client: ServedClient, reference: Reference, images: Sequence[bytes]
) -> list[Check]:
    """The decoder returns the pixels of the original's processor, alone and in a batch."""
    return [
        checked("pixels, one per request", _pixels(client, reference, images, 1)),
        checked(f"pixels, {ROWS} per request", _pixels(client, reference, images, ROWS)),
    ]


def _pixels(
    client: ServedClient, reference: Reference, images: Sequence[bytes], rows: int
) -> Callable[[str], Check]:
    def measure(name: str) -> Check:
        expected, names = reference.outputs["pixels"], image_names(reference)
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


def _decoded(client: ServedClient, reference: Reference, images: Sequence[bytes]) -> np.ndarray:
    tensor = triton.InferInput("image", [len(images), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[image] for image in images], dtype=object))
    result = client.infer(member_name(reference.name, Role.PRE), [tensor])
    return np.asarray(result.as_numpy("pixels"))

"""Prove what Triton serves of an image classifier: image files over gRPC, against the original.

The whole pipeline returns only the likeliest labels, so its two steps are also checked by
themselves: the decoder for its pixels, the labeller for all its labels.
"""

import base64
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tritonclient import grpc as triton

from converters.proof.checks import Check, at_most, worst_difference
from converters.proof.label_step import label_checks
from converters.proof.reference import Reference
from converters.proof.served_client import ServedClient
from converters.tasks.image_classification.checks import checked, image_names
from converters.tasks.image_classification.served_labels import (
    Prediction,
    errors,
    label_parity,
    predictions_of,
    scores_of,
)
from converters.tasks.image_classification.served_steps import pixel_checks
from modelspec.golden import Golden
from modelspec.parameters import GOLDEN_PARAMETER

ROWS = 8
# As many concurrent requests as fill two of Triton's batches, so that it merges them.
CLIENTS = 32


def served_checks(address: str, reference: Reference, images: Sequence[bytes]) -> list[Check]:
    """Checks of the pipeline at ``address`` with the reference's ``images`` (one per request, in
    batches, and all at once), of its steps, and of its golden sample."""
    with ServedClient(address) as client:
        return [
            *_pipeline_checks(client, reference, images),
            *pixel_checks(client, reference, images),
            *label_checks(client, reference),
            checked("golden sample, served", lambda name: _golden(name, client, reference)),
        ]


def _pipeline_checks(
    client: ServedClient, reference: Reference, images: Sequence[bytes]
) -> list[Check]:
    model, names = reference.name, image_names(reference)
    starts = range(0, len(images), ROWS)
    alone = [row for image in images for row in _classify(client, model, [image])]
    batched = [
        row for start in starts for row in _classify(client, model, images[start : start + ROWS])
    ]
    with ThreadPoolExecutor(CLIENTS) as pool:
        responses = pool.map(lambda image: _classify(client, model, [image]), images)
        concurrent = [row for response in responses for row in response]
    limit = reference.tolerance.invariance
    alone_scores, batched_scores, concurrent_scores = (
        scores_of(predictions, reference) for predictions in (alone, batched, concurrent)
    )
    return [
        errors([*alone, *batched, *concurrent], [*names, *names, *names]),
        *label_parity(alone, reference, "one per request"),
        *label_parity(batched, reference, f"{ROWS} per request"),
        *label_parity(concurrent, reference, "all at once"),
        worst_difference("batch invariance, served", batched_scores, alone_scores, limit, names),
        worst_difference("requests at once, served", concurrent_scores, alone_scores, limit, names),
        *_duplicates(alone_scores, reference),
    ]


def _duplicates(scores: np.ndarray, reference: Reference) -> list[Check]:
    """The same pixels in another file (turned by EXIF, lossless WebP, 16 bits, with alpha) get the
    same scores."""
    names = image_names(reference)
    duplicates = [str(duplicate) for duplicate in reference.outputs["duplicates"]]
    pairs = [(row, names.index(duplicate)) for row, duplicate in enumerate(duplicates) if duplicate]
    if not pairs:
        return []
    rows, originals = ([pair[side] for pair in pairs] for side in (0, 1))
    labels = [names[row] for row in rows]
    # Sent one per request: these must not differ even where a batch may change scores.
    limit = min(reference.tolerance.invariance, reference.tolerance.difference)
    return [
        worst_difference(
            "format and EXIF invariance", scores[rows], scores[originals], limit, labels
        )
    ]


def _golden(name: str, client: ServedClient, reference: Reference) -> Check:
    """The golden sample in the pipeline's own config gets the outputs that it expects."""
    parameters = client.config(reference.name).parameters
    golden = Golden.parse(parameters[GOLDEN_PARAMETER].string_value)
    image = base64.b64decode(golden.request["image"]["b64"])
    prediction = _classify(client, reference.name, [image])[0]
    expect = golden.expect
    labels = [label.encode() for label in expect.get("label", [])]
    if prediction.error or list(prediction.labels[: len(labels)]) != labels:
        return at_most(
            name, 1, 0, prediction.error or f"{prediction.labels[:1]}, expected {labels}"
        )
    expected = np.array([expect["score"]])
    actual = np.array([prediction.scores[: expected.shape[1]]])
    return worst_difference(name, actual, expected, golden.tolerance, ["golden"])


def _classify(client: ServedClient, model: str, images: Sequence[bytes]) -> list[Prediction]:
    """A prediction for each image, from one request."""
    tensor = triton.InferInput("image", [len(images), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[image] for image in images], dtype=object))
    return predictions_of(lambda: client.infer(model, [tensor]), len(images))

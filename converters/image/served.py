"""Prove what Triton serves of an image classifier: image files over gRPC, against the original.

The whole pipeline shows the likeliest labels only, so its two steps are asked by themselves as
well: the decoder for its pixels, the labeller for every label it has.
"""

import base64
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from tritonclient import grpc as triton

from converters.image.answers import Answer, answered, errors, label_parity, scores_of
from converters.image.proof import case_names, checked
from converters.image.served_steps import label_checks, pixel_checks
from converters.proof import Check, at_most, worst_difference
from converters.task import Reference
from modelspec.golden import GOLDEN_PARAMETER

TIMEOUT_S = 60.0
ROWS = 8
# As many requests at a time as two of Triton's batches hold, so that it merges them.
CROWD = 32


def served_checks(address: str, reference: Reference, images: Sequence[bytes]) -> list[Check]:
    """Checks of the pipeline at ``address``, whose ``images`` the original has answered: one a
    request, in batches, and all at once; of its steps; and of its golden sample."""
    with triton.InferenceServerClient(address) as client:
        return [
            *_pipeline_checks(client, reference, images),
            *pixel_checks(client, reference, images),
            *label_checks(client, reference),
            checked("golden sample, served", lambda name: _golden(name, client, reference)),
        ]


def _pipeline_checks(
    client: triton.InferenceServerClient, reference: Reference, images: Sequence[bytes]
) -> list[Check]:
    model, names = reference.name, case_names(reference)
    starts = range(0, len(images), ROWS)
    alone = [row for each in images for row in _classify(client, model, [each])]
    batched = [row for i in starts for row in _classify(client, model, images[i : i + ROWS])]
    with ThreadPoolExecutor(CROWD) as pool:
        parts = pool.map(lambda each: _classify(client, model, [each]), images)
        crowd = [row for part in parts for row in part]
    limit = reference.tolerance.invariance
    one, many, at_once = (scores_of(answers, reference) for answers in (alone, batched, crowd))
    return [
        errors([*alone, *batched, *crowd], [*names, *names, *names]),
        *label_parity(alone, reference, "one a request"),
        *label_parity(batched, reference, f"{ROWS} a request"),
        *label_parity(crowd, reference, "all at once"),
        worst_difference("batch invariance, served", many, one, limit, names),
        worst_difference("requests at once, served", at_once, one, limit, names),
        *_duplicates(one, reference),
    ]


def _duplicates(scores: np.ndarray, reference: Reference) -> list[Check]:
    """The same pixels in another file: turned by EXIF, lossless WebP, 16 bits, with alpha."""
    names = case_names(reference)
    duplicates = [str(duplicate) for duplicate in reference.answers["duplicates"]]
    pairs = [(row, names.index(duplicate)) for row, duplicate in enumerate(duplicates) if duplicate]
    if not pairs:
        return []
    mine, theirs = ([pair[side] for pair in pairs] for side in (0, 1))
    named = [names[row] for row in mine]
    # Asked one at a time: also where the batch may change an answer, these may not differ.
    limit = min(reference.tolerance.invariance, reference.tolerance.difference)
    return [
        worst_difference("format and EXIF invariance", scores[mine], scores[theirs], limit, named)
    ]


def _golden(name: str, client: triton.InferenceServerClient, reference: Reference) -> Check:
    """The probe in the pipeline's own config gets the answer that stands beside it."""
    parameters = client.get_model_config(reference.name).config.parameters
    golden: dict[str, Any] = json.loads(parameters[GOLDEN_PARAMETER].string_value)
    picture = base64.b64decode(golden["request"]["image"]["b64"])
    answer = _classify(client, reference.name, [picture])[0]
    wanted = golden["expect"]
    labels = [label.encode() for label in wanted.get("label", [])]
    if answer.error or list(answer.labels[: len(labels)]) != labels:
        return at_most(name, 1, 0, answer.error or f"{answer.labels[:1]}, expected {labels}")
    expected = np.array([wanted["score"]])
    got = np.array([answer.scores[: expected.shape[1]]])
    return worst_difference(name, got, expected, golden["tolerance"], ["golden"])


def _classify(
    client: triton.InferenceServerClient, model: str, images: Sequence[bytes]
) -> list[Answer]:
    """An answer for each image, of one request."""
    tensor = triton.InferInput("image", [len(images), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[picture] for picture in images], dtype=object))
    return answered(lambda: client.infer(model, [tensor], client_timeout=TIMEOUT_S), len(images))

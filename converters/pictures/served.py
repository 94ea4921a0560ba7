"""Prove what Triton serves of an image classifier: picture files over gRPC, against the original.

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

from converters.pictures.answers import Answer, answered, errors, label_parity, scores_of
from converters.pictures.proof import case_names, checked
from converters.pictures.served_steps import label_checks, pixel_checks
from converters.proof import Check, at_most, worst_difference
from converters.task import Case
from modelspec.golden import GOLDEN_PARAMETER

TIMEOUT_S = 60.0
ROWS = 8
# As many requests at a time as two of Triton's batches hold, so that it merges them.
CROWD = 32


def served_checks(address: str, case: Case, pictures: Sequence[bytes]) -> list[Check]:
    """Checks of the pipeline at ``address``, whose ``pictures`` the original has answered: one a
    request, in batches, and all at once; of its steps; and of its golden sample."""
    with triton.InferenceServerClient(address) as client:
        return [
            *_pipeline_checks(client, case, pictures),
            *pixel_checks(client, case, pictures),
            *label_checks(client, case),
            checked("golden sample, served", lambda name: _golden(name, client, case)),
        ]


def _pipeline_checks(
    client: triton.InferenceServerClient, case: Case, pictures: Sequence[bytes]
) -> list[Check]:
    model, names = case.name, case_names(case)
    starts = range(0, len(pictures), ROWS)
    alone = [row for each in pictures for row in _classify(client, model, [each])]
    batched = [row for i in starts for row in _classify(client, model, pictures[i : i + ROWS])]
    with ThreadPoolExecutor(CROWD) as pool:
        parts = pool.map(lambda each: _classify(client, model, [each]), pictures)
        crowd = [row for part in parts for row in part]
    limit = case.tolerance.invariance
    one, many, at_once = (scores_of(answers, case) for answers in (alone, batched, crowd))
    return [
        errors([*alone, *batched, *crowd], [*names, *names, *names]),
        *label_parity(alone, case, "one a request"),
        *label_parity(batched, case, f"{ROWS} a request"),
        *label_parity(crowd, case, "all at once"),
        worst_difference("batch invariance, served", many, one, limit, names),
        worst_difference("requests at once, served", at_once, one, limit, names),
        *_twins(one, case),
    ]


def _twins(scores: np.ndarray, case: Case) -> list[Check]:
    """The same pixels in another file: turned by EXIF, lossless WebP, 16 bits, with alpha."""
    names = case_names(case)
    twins = [str(twin) for twin in case.answers["twins"]]
    pairs = [(row, names.index(twin)) for row, twin in enumerate(twins) if twin]
    if not pairs:
        return []
    mine, theirs = ([pair[side] for pair in pairs] for side in (0, 1))
    named = [names[row] for row in mine]
    # Asked one at a time: also where the batch may change an answer, these may not differ.
    limit = min(case.tolerance.invariance, case.tolerance.difference)
    return [
        worst_difference("format and EXIF invariance", scores[mine], scores[theirs], limit, named)
    ]


def _golden(name: str, client: triton.InferenceServerClient, case: Case) -> Check:
    """The probe in the pipeline's own config gets the answer that stands beside it."""
    parameters = client.get_model_config(case.name).config.parameters
    golden: dict[str, Any] = json.loads(parameters[GOLDEN_PARAMETER].string_value)
    picture = base64.b64decode(golden["request"]["image"]["b64"])
    answer = _classify(client, case.name, [picture])[0]
    wanted = golden["expect"]
    labels = [label.encode() for label in wanted.get("label", [])]
    if answer.error or list(answer.labels[: len(labels)]) != labels:
        return at_most(name, 1, 0, answer.error or f"{answer.labels[:1]}, expected {labels}")
    expected = np.array([wanted["score"]])
    got = np.array([answer.scores[: expected.shape[1]]])
    return worst_difference(name, got, expected, golden["tolerance"], ["golden"])


def _classify(
    client: triton.InferenceServerClient, model: str, pictures: Sequence[bytes]
) -> list[Answer]:
    """An answer for each picture, of one request."""
    tensor = triton.InferInput("image", [len(pictures), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[picture] for picture in pictures], dtype=object))
    return answered(lambda: client.infer(model, [tensor], client_timeout=TIMEOUT_S), len(pictures))

"""Prove what Triton serves: the same picture files, over gRPC, against the original's answers."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tritonclient import grpc as triton

from converters.image_classification import Asked
from converters.image_proof import SCORE, scores
from converters.proof import Check, Proof, at_most, worst_difference

TIMEOUT_S = 60.0
ROWS = 8
CROWD = 32
Answer = tuple[np.ndarray, np.ndarray]


def prove_served_classification(
    address: str, model: str, asked: Asked, labels: Sequence[str]
) -> Proof:
    """Checks of the pipeline at ``address``: one picture a request, in batches, and all at once."""
    pictures, names = asked.pictures, asked.names
    with triton.InferenceServerClient(address) as client:
        alone = _joined([_classify(client, model, [picture]) for picture in pictures])
        starts = range(0, len(pictures), ROWS)
        batched = _joined([_classify(client, model, pictures[i : i + ROWS]) for i in starts])
        crowd = _joined(_at_once(client, model, pictures))
    checks = (
        *_parity(alone, scores(asked.logits), labels, names),
        worst_difference("batch invariance, served", batched[1], alone[1], SCORE, names),
        worst_difference("requests at once, served", crowd[1], alone[1], SCORE, names),
        _twins(alone, asked),
    )
    return Proof(f"{model} through Triton", len(pictures), checks)


def _parity(
    got: Answer, original: np.ndarray, labels: Sequence[str], names: Sequence[str]
) -> list[Check]:
    """The likeliest label is the original's, and every label comes with the original's score."""
    label, score = got
    place = {name.encode(): index for index, name in enumerate(labels)}
    classes = np.array([[place[name] for name in row] for row in label])
    theirs = np.take_along_axis(original, classes, axis=1)
    best = -np.sort(-original, axis=1)[:, : score.shape[1]]
    wrong = [names[i] for i in np.flatnonzero(classes[:, 0] != original.argmax(axis=1))]
    return [
        at_most("task: pictures with another likeliest label", len(wrong), 0, ", ".join(wrong)),
        worst_difference("parity: the score of each label", score, theirs, SCORE, names),
        worst_difference("parity: the highest scores", score, best, SCORE, names),
    ]


def _twins(got: Answer, asked: Asked) -> Check:
    """The same pixels in another file: turned by EXIF, lossless WebP, 16 bits, with alpha."""
    place = {name: index for index, name in enumerate(asked.names)}
    pairs = [(i, place[twin]) for i, twin in enumerate(asked.twins) if twin]
    mine, theirs = ([pair[side] for pair in pairs] for side in (0, 1))
    named = [asked.names[index] for index in mine]
    score = got[1]
    return worst_difference("format and EXIF invariance", score[mine], score[theirs], SCORE, named)


def _at_once(
    client: triton.InferenceServerClient, model: str, pictures: Sequence[bytes]
) -> list[Answer]:
    """As many requests at a time as two of Triton's batches hold, so that it merges them."""
    with ThreadPoolExecutor(CROWD) as pool:
        return list(pool.map(lambda picture: _classify(client, model, [picture]), pictures))


def _classify(
    client: triton.InferenceServerClient, model: str, pictures: Sequence[bytes]
) -> Answer:
    return _answer(client.infer(model, [_tensor(pictures)], client_timeout=TIMEOUT_S))


def _tensor(pictures: Sequence[bytes]) -> triton.InferInput:
    tensor = triton.InferInput("image", [len(pictures), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[picture] for picture in pictures], dtype=object))
    return tensor


def _answer(result: triton.InferResult) -> Answer:
    return result.as_numpy("label"), result.as_numpy("score")


def _joined(answers: Sequence[Answer]) -> Answer:
    return np.concatenate([a[0] for a in answers]), np.concatenate([a[1] for a in answers])

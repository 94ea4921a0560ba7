"""Prove what Triton serves of a text classifier: raw texts over gRPC, against the original."""

from collections.abc import Sequence

import numpy as np
from tritonclient import grpc as triton

from converters.classification_proof import LOGITS, parity
from converters.proof import Proof, worst_difference

TIMEOUT_S = 60.0


def prove_served_classifier(
    address: str, model: str, labels: Sequence[str], texts: Sequence[str], original: np.ndarray
) -> Proof:
    """Checks of the pipeline at ``address``, one text a request and in batches of eight."""
    with triton.InferenceServerClient(address) as client:
        alone = [_scores(client, model, labels, [text]) for text in texts]
        batched = [
            _scores(client, model, labels, texts[start : start + 8])
            for start in range(0, len(texts), 8)
        ]
    scores, together = np.concatenate(alone), np.concatenate(batched)
    checks = (
        *parity(scores, original, texts),
        worst_difference("batch invariance, served", together, scores, LOGITS, texts),
    )
    return Proof(f"{model} through Triton", len(texts), checks)


def _scores(
    client: triton.InferenceServerClient, model: str, labels: Sequence[str], texts: Sequence[str]
) -> np.ndarray:
    """Scores FP32 [n, labels] in the model's order, put together from the answer's labels."""
    tensor = triton.InferInput("text", [len(texts), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[t.encode()] for t in texts], dtype=object))
    result = client.infer(model, [tensor], client_timeout=TIMEOUT_S)
    order = {label.encode(): index for index, label in enumerate(labels)}
    scores = np.full((len(texts), len(labels)), np.nan, dtype=np.float32)
    named, found = result.as_numpy("label"), result.as_numpy("score")
    for row, (names, values) in enumerate(zip(named, found, strict=True)):
        for name, value in zip(names, values, strict=True):
            scores[row, order[name]] = value
    return scores

"""Prove what Triton serves: the same raw texts, over gRPC, against the original's answers."""

from collections.abc import Sequence

import numpy as np
from tritonclient import grpc as triton

from converters.embedding_proof import ABSOLUTE, parity
from converters.proof import Check, Proof, worst_difference

TIMEOUT_S = 60.0


def prove_served_embedding(
    address: str, model: str, texts: Sequence[str], original: np.ndarray, token_count: np.ndarray
) -> Proof:
    """Checks of the pipeline at ``address``, one text a request and in batches of eight."""
    with triton.InferenceServerClient(address) as client:
        alone = [_embed(client, model, [text]) for text in texts]
        batched = [_embed(client, model, texts[i : i + 8]) for i in range(0, len(texts), 8)]
    vectors = np.concatenate([vector for vector, _ in alone])
    counts = np.concatenate([count for _, count in alone]).reshape(-1)
    together = np.concatenate([vector for vector, _ in batched])
    checks: list[Check] = [
        *parity(vectors, original, texts),
        worst_difference("token count", counts, token_count, 0, texts),
        worst_difference("batch invariance, served", together, vectors, ABSOLUTE, texts),
    ]
    return Proof(f"{model} through Triton", len(texts), tuple(checks))


def _embed(
    client: triton.InferenceServerClient, model: str, texts: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    tensor = triton.InferInput("text", [len(texts), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[t.encode()] for t in texts], dtype=object))
    result = client.infer(model, [tensor], client_timeout=TIMEOUT_S, parameters={"truncate": True})
    return result.as_numpy("sentence_embedding"), result.as_numpy("token_count")

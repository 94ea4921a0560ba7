"""Prove what Triton serves of a tabular model: rows over gRPC, against the original."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from tritonclient import grpc as triton

from converters.proof.checks import Check
from converters.proof.reference import Reference
from converters.proof.relative import largest_relative
from converters.proof.served_client import ServedClient
from converters.table import Table
from converters.tasks.tabular.checks import (
    column_feeds,
    parity,
    reference_table,
    scores_by_label,
    steady_rows,
)

BATCH = 16


def served_checks(address: str, reference: Reference) -> list[Check]:
    """Check the pipeline at ``address``: one row per request, and in batches of sixteen."""
    table = reference_table(reference)
    with ServedClient(address) as client:
        alone = _infer_all(client, reference, table, 1)
        together = _infer_all(client, reference, table, BATCH)
    limit, labels = reference.tolerance.invariance, reference.metadata["labels"]
    alone_numbers, together_numbers = (
        scores_by_label(outputs[0], outputs[1], labels)[0] if labels else outputs[0]
        for outputs in (alone, together)
    )
    steady = steady_rows(reference)
    return [
        *parity(alone, table, reference),
        largest_relative(
            "batch invariance, served",
            together_numbers[steady],
            alone_numbers[steady],
            limit,
            table.rows(steady).labels,
        ),
    ]


def _infer_all(
    client: ServedClient, reference: Reference, table: Table, batch: int
) -> list[np.ndarray]:
    """The pipeline's outputs for every row, ``batch`` rows per request."""
    responses = [
        _infer(client, reference.name, reference.metadata, table.rows(slice(start, start + batch)))
        for start in range(0, len(table), batch)
    ]
    return [np.concatenate(outputs) for outputs in zip(*responses, strict=True)]


def _infer(
    client: ServedClient, model: str, metadata: Mapping[str, Any], table: Table
) -> list[np.ndarray]:
    inputs = []
    for name, values in column_feeds(table, metadata).items():
        dtype = "BYTES" if values.dtype == object else metadata["number"]
        tensor = triton.InferInput(name, list(values.shape), dtype)
        if dtype == "BYTES":
            texts = [[str(text).encode()] for text in values[:, 0]]
            values = np.array(texts, dtype=object)
        tensor.set_data_from_numpy(values)
        inputs.append(tensor)
    result = client.infer(model, inputs)
    return [
        result.as_numpy(name) for name in (["label", "score"] if metadata["labels"] else ["value"])
    ]

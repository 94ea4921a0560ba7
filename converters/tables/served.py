"""Prove what Triton serves of a model on tables: rows over gRPC, against the original."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from tritonclient import grpc as triton

from converters.proof import Check
from converters.relative import largest_relative
from converters.tables.proof import case_table, column_feeds, parity, scores_by_label
from converters.tables.table import Table
from converters.task import Case

TIMEOUT_S = 60.0
BATCH = 16


def served_checks(address: str, case: Case) -> list[Check]:
    """Checks of the pipeline at ``address``: one row a request, and in batches of sixteen."""
    table = case_table(case)
    with triton.InferenceServerClient(address) as client:
        alone = _all(client, case, table, 1)
        together = _all(client, case, table, BATCH)
    limit, labels = case.tolerance.invariance, case.facts["labels"]
    first, second = (
        scores_by_label(outputs[0], outputs[1], labels)[0] if labels else outputs[0]
        for outputs in (alone, together)
    )
    return [
        *parity(alone, table, case),
        largest_relative("batch invariance, served", second, first, limit, table.labels),
    ]


def _all(
    client: triton.InferenceServerClient, case: Case, table: Table, batch: int
) -> list[np.ndarray]:
    """The pipeline's outputs for every row, asked about ``batch`` rows at a time."""
    each = [
        _infer(client, case.name, case.facts, table.rows(slice(start, start + batch)))
        for start in range(0, len(table), batch)
    ]
    return [np.concatenate(outputs) for outputs in zip(*each, strict=True)]


def _infer(
    client: triton.InferenceServerClient, model: str, facts: Mapping[str, Any], table: Table
) -> list[np.ndarray]:
    inputs = []
    for name, values in column_feeds(table, facts).items():
        dtype = "BYTES" if values.dtype == object else facts["number"]
        tensor = triton.InferInput(name, list(values.shape), dtype)
        if dtype == "BYTES":
            texts = [[str(text).encode()] for text in values[:, 0]]
            values = np.array(texts, dtype=object)
        tensor.set_data_from_numpy(values)
        inputs.append(tensor)
    result = client.infer(model, inputs, client_timeout=TIMEOUT_S)
    return [
        result.as_numpy(name) for name in (["label", "score"] if facts["labels"] else ["value"])
    ]

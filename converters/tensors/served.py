"""Prove what Triton serves of a model of plain tensors: raw tensors over gRPC."""

from collections.abc import Sequence

import numpy as np
from tritonclient import grpc as triton

from converters.proof import Check
from converters.sources.tensor_source import Group, TensorInfo
from converters.task import Reference
from converters.tensors.proof import (
    as_kept,
    case_groups,
    invariance,
    joined,
    parity,
    shape_note,
    single_rows,
)

TIMEOUT_S = 120.0
BATCH = 8


def served_checks(address: str, reference: Reference) -> list[Check]:
    """Checks of the pipeline at ``address``: one row a request, and in batches of eight."""
    checks: list[Check] = []
    parts = case_groups(reference)
    with triton.InferenceServerClient(address) as client:
        for group, original, noise in parts:
            alone, together = (_all(client, reference, group, size) for size in (1, BATCH))
            where = f"served, parity{shape_note(group, len(parts))}"
            checks += parity(where, alone, original, noise, reference)
            checks += invariance(
                f"served, batches of {BATCH}",
                together,
                alone,
                reference.tolerance.invariance,
                noise,
            )
    return checks


def _all(
    client: triton.InferenceServerClient, reference: Reference, group: Group, size: int
) -> dict[str, np.ndarray]:
    inputs = [TensorInfo.from_facts(each) for each in reference.metadata["inputs"]]
    outputs = [TensorInfo.from_facts(each) for each in reference.metadata["outputs"]]
    return joined(
        [_infer(client, reference.name, inputs, outputs, b) for b in single_rows(group, size)]
    )


def _infer(
    client: triton.InferenceServerClient,
    model: str,
    inputs: Sequence[TensorInfo],
    outputs: Sequence[TensorInfo],
    batch: Group,
) -> dict[str, np.ndarray]:
    tensors = []
    for port in inputs:
        values = batch[port.name]
        values = values.reshape(len(values), 1) if port.flat else values
        tensor = triton.InferInput(port.name, list(values.shape), port.dtype)
        if port.dtype == "BYTES":
            texts = [str(text).encode() for text in values.flat]
            values = np.array(texts, dtype=object).reshape(values.shape)
        tensor.set_data_from_numpy(np.ascontiguousarray(values))
        tensors.append(tensor)
    result = client.infer(model, tensors, client_timeout=TIMEOUT_S)
    found = {port.name: as_kept(result.as_numpy(port.name)) for port in outputs}
    return {
        port.name: found[port.name].reshape(-1) if port.flat else found[port.name]
        for port in outputs
    }

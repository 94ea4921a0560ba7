"""Prove what Triton serves of a model of plain tensors: raw tensors over gRPC."""

from collections.abc import Sequence

import numpy as np
from tritonclient import grpc as triton

from converters.export.tensor_info import TensorInfo
from converters.proof.checks import Check
from converters.proof.reference import Reference
from converters.proof.served_client import ServedClient
from converters.sources.tensor_source import Batch
from converters.tasks.tensors.checks import (
    from_runtime,
    invariance,
    joined,
    parity,
    reference_batches,
    shape_note,
    single_rows,
)

BATCH = 8


def served_checks(address: str, reference: Reference) -> list[Check]:
    """Checks of the pipeline at ``address``: one row per request, and in batches of eight."""
    checks: list[Check] = []
    groups = reference_batches(reference)
    with ServedClient(address) as client:
        for group, original, noise in groups:
            alone, together = (_infer_all(client, reference, group, size) for size in (1, BATCH))
            title = f"served, parity{shape_note(group, len(groups))}"
            checks += parity(title, alone, original, noise, reference)
            checks += invariance(
                f"served, batches of {BATCH}",
                together,
                alone,
                reference.tolerance.invariance,
                noise,
            )
    return checks


def _infer_all(
    client: ServedClient, reference: Reference, group: Batch, size: int
) -> dict[str, np.ndarray]:
    inputs = [TensorInfo.from_metadata(metadata) for metadata in reference.metadata["inputs"]]
    outputs = [TensorInfo.from_metadata(metadata) for metadata in reference.metadata["outputs"]]
    return joined(
        [
            _infer(client, reference.name, inputs, outputs, batch)
            for batch in single_rows(group, size)
        ]
    )


def _infer(
    client: ServedClient,
    model: str,
    inputs: Sequence[TensorInfo],
    outputs: Sequence[TensorInfo],
    batch: Batch,
) -> dict[str, np.ndarray]:
    tensors = []
    for info in inputs:
        values = batch[info.name]
        values = values.reshape(len(values), 1) if info.flat else values
        tensor = triton.InferInput(info.name, list(values.shape), info.dtype)
        if info.dtype == "BYTES":
            texts = [str(text).encode() for text in values.flat]
            values = np.array(texts, dtype=object).reshape(values.shape)
        tensor.set_data_from_numpy(np.ascontiguousarray(values))
        tensors.append(tensor)
    result = client.infer(model, tensors)
    arrays = {}
    for info in outputs:
        values = from_runtime(result.as_numpy(info.name))
        arrays[info.name] = values.reshape(-1) if info.flat else values
    return arrays

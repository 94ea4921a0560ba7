"""Run a user's torch module itself, one row at a time, in a process of its own.

python -m converters.tasks.tensors.torch_reference MODULE:FACTORY NAMES.json ROWS.npz ANSWERS.npz
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from converters.export.module2onnx import named_outputs
from converters.proof.reference_process import ask, noise_of_fp32, repeat_positions
from converters.proof.statefulness import require_same_again
from converters.sources.batch_files import pack_batches, unpack_batches
from converters.sources.tensor_source import Batch, ReferenceOutputs
from converters.sources.torch_factory import find_factory, made_by, weights_sha256
from converters.tasks.tensors.checks import doubled, joined, single_rows


def ask_module(
    source: str, names: Sequence[str], groups: Sequence[Batch], folder: Path
) -> tuple[ReferenceOutputs, str]:
    """The module's outputs under these names, and the SHA-256 of its weights."""
    rows_file, names_file = folder / "rows.npz", folder / "names.json"
    np.savez(rows_file, **pack_batches(groups, "in"))
    names_file.write_text(json.dumps(list(names)), encoding="utf-8")
    answers_file = folder / "torch.npz"
    reported = ask(
        "converters.tasks.tensors.torch_reference",
        source,
        names_file,
        rows_file,
        answers=answers_file,
    )
    outputs, noise = (unpack_batches(reported, part) for part in ("out", "noise"))
    return ReferenceOutputs(outputs, "torch", noise), str(reported["weights"])


def main(source: str, names_file: str, rows_file: str, target: str) -> None:
    module, _ = made_by(source, find_factory(source)[0])
    names = json.loads(Path(names_file).read_text(encoding="utf-8"))
    with np.load(rows_file) as stored:
        groups = unpack_batches(stored, "in")
    outputs = [
        joined([_outputs(module, names, row) for row in single_rows(group)]) for group in groups
    ]
    weights = np.array(weights_sha256(module))
    fresh = _require_stateless(source, names, groups, outputs)
    noise = [
        _noise(fresh, names, group, reported)
        for group, reported in zip(groups, outputs, strict=True)
    ]
    arrays = {**pack_batches(outputs, "out"), **pack_batches(noise, "noise")}
    np.savez(target, weights=weights, **arrays)


def _require_stateless(
    source: str, names: Sequence[str], groups: Sequence[Batch], reported: Sequence[Batch]
) -> torch.nn.Module:
    """Run some rows again with a fresh module and in reverse, and return that module. Ends the
    process where the outputs depend on either."""
    module, _ = made_by(source, find_factory(source)[0])
    for group, outputs in zip(groups, reported, strict=True):
        rows = list(single_rows(group))
        labels = [f"sample {row}" for row in range(len(rows))]
        again = joined(
            [_outputs(module, names, rows[position]) for position in repeat_positions(len(rows))]
        )
        for name, values in outputs.items():
            require_same_again(name, values, again[name], labels)
    return module


def _noise(
    module: torch.nn.Module, names: Sequence[str], group: Batch, reported: Batch
) -> dict[str, np.ndarray]:
    """What FP32 rounds off each FP32 output; the module stays in FP64."""
    rows = list(single_rows(group))

    def exact(positions: list[int]) -> dict[str, np.ndarray]:
        module.double()
        return joined([_outputs(module, names, doubled(rows[position])) for position in positions])

    return noise_of_fp32(reported, exact)


@torch.inference_mode()
def _outputs(module: torch.nn.Module, names: Sequence[str], row: Batch) -> dict[str, np.ndarray]:
    inputs = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in row.items()}
    values = named_outputs(module(**inputs)).values()
    return {name: value.contiguous().numpy() for name, value in zip(names, values, strict=True)}


if __name__ == "__main__":
    main(*sys.argv[1:])

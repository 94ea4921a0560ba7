"""What a user's torch module answers by itself, one row at a time, in a process of its own.

python -m converters.tensors.torch_oracle MODULE:FACTORY NAMES.json ROWS.npz ANSWERS.npz
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from converters.original import ask, fp32_noise, places_again
from converters.past import require_same_again
from converters.sources.tensor_source import Group, ReferenceOutputs
from converters.sources.torch_factory import find_factory, made_by, named_outputs, weights_sha256
from converters.tensors.group_files import pack_groups, unpack_groups
from converters.tensors.proof import doubled, joined, single_rows


def ask_module(
    source: str, names: Sequence[str], groups: Sequence[Group], folder: Path
) -> tuple[ReferenceOutputs, str]:
    """The answers under these output names, and the weights that gave them (SHA-256)."""
    questions, written = folder / "rows.npz", folder / "names.json"
    np.savez(questions, **pack_groups(groups, "in"))
    written.write_text(json.dumps(list(names)), encoding="utf-8")
    answers = folder / "torch.npz"
    reported = ask("converters.tensors.torch_oracle", source, written, questions, answers=answers)
    outputs, noise = (unpack_groups(reported, part) for part in ("out", "noise"))
    return ReferenceOutputs(outputs, "torch", noise), str(reported["weights"])


def main(source: str, names: str, questions: str, answers: str) -> None:
    module, _ = made_by(source, find_factory(source)[0])
    wanted = json.loads(Path(names).read_text(encoding="utf-8"))
    with np.load(questions) as stored:
        groups = unpack_groups(stored, "in")
    outputs = [
        joined([_answer(module, wanted, row) for row in single_rows(group)]) for group in groups
    ]
    weights = np.array(weights_sha256(module))
    fresh = _require_no_past(source, wanted, groups, outputs)
    noise = [_noise(fresh, wanted, *each) for each in zip(groups, outputs, strict=True)]
    arrays = {**pack_groups(outputs, "out"), **pack_groups(noise, "noise")}
    np.savez(answers, weights=weights, **arrays)


def _require_no_past(
    source: str, names: Sequence[str], groups: Sequence[Group], reported: Sequence[Group]
) -> torch.nn.Module:
    """The same once more, from a fresh module and in reverse: what it answers may not depend on
    that. The fresh module."""
    module, _ = made_by(source, find_factory(source)[0])
    for group, outputs in zip(groups, reported, strict=True):
        rows = list(single_rows(group))
        labels = [f"sample {row}" for row in range(len(rows))]
        again = joined([_answer(module, names, rows[place]) for place in places_again(len(rows))])
        for name, first in outputs.items():
            require_same_again(name, first, again[name], labels)
    return module


def _noise(
    module: torch.nn.Module, names: Sequence[str], group: Group, reported: Group
) -> dict[str, np.ndarray]:
    """What FP32 rounds off of each output FP32; the module is in FP64 from then on."""
    floats = {n: each for n, each in reported.items() if each.dtype == np.float32 and each.size}
    if not floats:
        return {}
    rows = list(single_rows(group))

    def exact(positions: list[int]) -> dict[str, np.ndarray]:
        module.double()
        return joined([_answer(module, names, doubled(rows[place])) for place in positions])

    noise = fp32_noise(floats, exact)
    return {name: noise[f"{name}_noise"] for name in floats}


@torch.inference_mode()
def _answer(module: torch.nn.Module, names: Sequence[str], row: Group) -> dict[str, np.ndarray]:
    inputs = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in row.items()}
    values = named_outputs(module(**inputs)).values()
    return {name: value.contiguous().numpy() for name, value in zip(names, values, strict=True)}


if __name__ == "__main__":
    main(*sys.argv[1:])

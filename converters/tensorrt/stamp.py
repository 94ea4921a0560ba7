"""What a plan is bound to, in ``model.plan.json`` beside it.

A plan is machine code for one TensorRT and one kind of GPU. If any field of the stamp differs, the
plan is never tried, but built again from the ONNX file beside it.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from converters.tensorrt.available import Gpu
from modelspec.files import atomic_write, file_sha256
from modelspec.layout import PLAN_FILE
from modelspec.profiles import Profile

STAMP_FILE = f"{PLAN_FILE}.json"
Shapes = list[dict[str, list[list[int]]]]


@dataclass(frozen=True)
class Stamp:
    """``profiles``: the minimum, usual and maximum shape of each input in each profile."""

    tensorrt: str
    compute_capability: str
    driver: str
    gpu: str
    onnx_sha256: str
    profiles: Shapes

    def differences(self, other: "Stamp") -> list[str]:
        """The fields in which ``other`` differs, in readable form."""
        built, here = asdict(self), asdict(other)
        unreadable = ("onnx_sha256", "profiles")
        return [
            f"another {name}" if name in unreadable else f"{name} {built[name]}, here {here[name]}"
            for name in built
            if built[name] != here[name]
        ]


def stamp_of(onnx: Path, gpu: Gpu, tensorrt: str, profiles: Sequence[Profile]) -> Stamp:
    """The stamp of a plan that this machine would build."""
    return Stamp(
        tensorrt=tensorrt,
        compute_capability=gpu.compute_capability,
        driver=gpu.driver,
        gpu=gpu.name,
        onnx_sha256=file_sha256(onnx),
        profiles=[
            {name: [list(r.least), list(r.usual), list(r.most)] for name, r in profile.items()}
            for profile in profiles
        ],
    )


def write(folder: Path, plan: bytes, stamp: Stamp) -> None:
    """Write the plan and its stamp, each with one rename. In between there is no engine: a plan
    without its own stamp does not count."""
    (folder / STAMP_FILE).unlink(missing_ok=True)
    atomic_write(folder / PLAN_FILE, plan)
    fields = {**asdict(stamp), "plan_sha256": hashlib.sha256(plan).hexdigest()}
    atomic_write(folder / STAMP_FILE, json.dumps(fields, indent=1) + "\n")


def read(folder: Path) -> Stamp | None:
    """The stamp of the plan in ``folder``; None if there is no plan, or not the stamped one."""
    try:
        fields = json.loads((folder / STAMP_FILE).read_text(encoding="utf-8"))
        if fields.pop("plan_sha256") != file_sha256(folder / PLAN_FILE):
            return None
        return Stamp(**fields)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def why_build(folder: Path, target: Stamp) -> str:
    """Why the plan in ``folder`` cannot be used as ``target``; "" if it can."""
    built = read(folder)
    if built is None:
        return "there is no plan with its stamp"
    return "; ".join(built.differences(target))

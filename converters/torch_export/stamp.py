"""What a ``.pt2`` file is bound to and which tensors it takes: ``extra/tidegate.json`` inside it.

``serving/backends/torch_export/pt2_stamp.py`` reads it, and refuses what does not fit: code that
was compiled for another CPU ends the process that runs it, and what AOTInductor compiled checks
neither the shapes nor the types of its inputs.
"""

import json
import platform
import re
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

STAMP_ENTRY = "extra/tidegate.json"
# The instruction sets that g++ -march=native may use; the other flags are the kernel's.
INSTRUCTION_SETS = re.compile(
    r"avx|amx|sse|ssse|fma|f16c|bmi|gfni|vaes|vpclmul|sha_|movbe|popcnt|abm|adx"
)
GraphTensor = dict[str, Any]  # "name", ONNX's "type", "axes": each a length or the name of a symbol
Symbols = Mapping[str, int]


@dataclass(frozen=True)
class Stamp:
    """``cpu_features`` are the instruction sets that code compiled for a CPU may use, and
    ``compute_capability`` that of the GPU. ``longest`` bounds an axis, by its symbol."""

    torch: str
    is_compiled: bool
    device: str
    cpu_features: tuple[str, ...]
    compute_capability: str
    operators: int
    inputs: tuple[GraphTensor, ...]
    outputs: tuple[GraphTensor, ...]
    longest: Symbols

    def add_to(self, file: Path) -> None:
        """Write it into the file."""
        with zipfile.ZipFile(file, "a") as archive:
            root = archive.namelist()[0].partition("/")[0]
            archive.writestr(f"{root}/{STAMP_ENTRY}", json.dumps(asdict(self)))

    @classmethod
    def read(cls, file: Path) -> "Stamp":
        """The stamp in the file; OSError, ValueError, KeyError or TypeError if there is none."""
        try:
            with zipfile.ZipFile(file) as archive:
                root = archive.namelist()[0].partition("/")[0]
                fields = json.loads(archive.read(f"{root}/{STAMP_ENTRY}"))
        except zipfile.BadZipFile as error:
            raise ValueError(f"{file} is not a .pt2 file: {error}") from error
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in fields.items()
        }
        return cls(**values)


def cpu_features() -> tuple[str, ...]:
    """The machine, and the instruction sets of this CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    # x86 has "flags", Arm has "Features", which are all instruction sets.
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    names = flags.partition(":")[2].split()
    if flags.startswith("flags"):
        names = [name for name in names if INSTRUCTION_SETS.match(name)]
    return (platform.machine(), *sorted(names))


def compute_capability() -> str:
    """That of the first GPU, as NVIDIA writes it: "9.0"."""
    return ".".join(map(str, torch.cuda.get_device_capability(0)))


def full_fp32() -> None:
    """FP32 is computed with all its bits: TF32 keeps 11 of them."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

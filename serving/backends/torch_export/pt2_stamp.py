"""What a ``.pt2`` file is bound to, and whether it fits this machine: ``extra/tidegate.json``
inside it, which ``tidegate convert --engine torch`` writes.

Code that AOTInductor compiled calls this release of torch in its binary form, and uses the
instruction sets of the CPU that it was compiled on: elsewhere it would end the process, or answer
wrongly. A program that was not compiled is bound too, because it was proved with this release.
"""

import json
import platform
import zipfile
from pathlib import Path
from typing import Any

Stamp = dict[str, Any]
STAMP_ENTRY = "extra/tidegate.json"
CONVERT = "convert it on this machine: tidegate convert SOURCE --engine torch --force"


class StampMissing(Exception):
    """The file has no stamp; the text says what to do."""


def read_stamp(file: Path) -> Stamp:
    """The stamp in a file; StampMissing if there is none."""
    try:
        with zipfile.ZipFile(file) as archive:
            root = archive.namelist()[0].partition("/")[0]
            stamp = json.loads(archive.read(f"{root}/{STAMP_ENTRY}"))
    except (OSError, KeyError, IndexError, ValueError, zipfile.BadZipFile) as error:
        reason = f"{type(error).__name__}: {error}"
        raise StampMissing(
            f"{file.name} does not say which torch and device it is for ({reason}): {CONVERT}"
        ) from error
    if not isinstance(stamp, dict):
        raise StampMissing(f"{file.name} has a stamp that is not an object: {CONVERT}")
    return stamp


def why_not_here(stamp: Stamp, device: str, torch_version: str, capability: str = "") -> str:
    """Why a file with this stamp cannot run on ``device`` ("cpu" or "cuda") of this machine, in one
    line; "" if it can. ``capability`` is the GPU's."""
    reasons = []
    if _release(stamp["torch"]) != _release(torch_version):
        reasons.append(f"it was made with torch {stamp['torch']}, and this is {torch_version}")
    if stamp["device"] != device:
        reasons.append(f"it was made for {stamp['device']}, and the config says {device}")
    elif device == "cuda" and stamp["compute_capability"] != capability:
        reasons.append(
            f"it was compiled for compute capability {stamp['compute_capability']}, and this GPU "
            f"has {capability}"
        )
    elif device == "cpu":
        missing = sorted(set(stamp["cpu_features"]) - set(cpu_features()))
        if missing:
            reasons.append(
                f"it was compiled for a CPU with {', '.join(missing)}, which this one lacks"
            )
    return f"{'; '.join(reasons)}: {CONVERT}" if reasons else ""


def cpu_features() -> set[str]:
    """The machine, and all that this CPU can do."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return {platform.machine(), *flags.partition(":")[2].split()}


def _release(version: str) -> str:
    """Without what says how it was built: +cpu, +cu130."""
    return version.partition("+")[0]

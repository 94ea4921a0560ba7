"""The hardware and package versions of a report."""

import os
import platform
import subprocess
from pathlib import Path

from modelspec.machine import cpu_name, git_commit, installed_versions, usable_cores

PACKAGES = (
    "tidegate",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "torch",
    "tensorrt",
    "cuda-bindings",
    "nvidia-pytriton",
    "tritonclient",
)
FIELDS = ("name", "driver_version", "memory.total", "compute_cap")


def gpus() -> list[dict[str, str]]:
    """The GPUs that nvidia-smi shows; [] without it or without a GPU."""
    command = ["nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader"]
    rows = [line.split(", ") for line in _output(command).splitlines()]
    return [dict(zip(FIELDS, row, strict=True)) for row in rows if len(row) == len(FIELDS)]


def surroundings(cpu: bool) -> dict[str, object]:
    """The head of the report. ``cpu_only`` means that none of its figures was measured on a GPU."""
    return {
        "cpu_only": cpu,
        "made_at": _output(["date", "-u", "+%Y-%m-%dT%H:%M:%SZ"]).strip(),
        "hardware": {
            "gpus": gpus(),
            "cpu": cpu_name(),
            "cores": usable_cores(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        },
        "versions": {
            "python": platform.python_version(),
            "system": platform.platform(),
            "git_commit": os.environ.get("TIDEGATE_COMMIT") or git_commit(Path(__file__).parent),
            "onnxruntime_build": _build_of_onnxruntime(),
            **installed_versions(PACKAGES),
        },
    }


def _build_of_onnxruntime() -> str:
    """What ONNX Runtime says of itself: the package that is imported, whichever is installed."""
    try:
        import onnxruntime
    except ImportError:
        return ""
    return f"{onnxruntime.__version__}; {onnxruntime.get_build_info()}"


def _output(command: list[str]) -> str:
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout if run.returncode == 0 else ""

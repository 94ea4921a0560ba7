"""The machine of a measurement: without it a figure means nothing."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("nvidia-pytriton", "onnxruntime", "fastapi", "uvicorn", "grpcio")


def describe(root: Path) -> dict[str, str]:
    """The header of the report; ``load`` is the machine's load before the benchmark."""
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(root),
        "cpu": cpu_model(Path("/proc/cpuinfo").read_text(encoding="utf-8")),
        "cores": str(len(os.sched_getaffinity(0))),
        "load": f"{os.getloadavg()[0]:.2f}",
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


def cpu_model(cpuinfo: str) -> str:
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()


def commit(root: Path) -> str:
    """The short hash, with ``+changes`` when the working tree differs from it."""
    revision = _git(root, "rev-parse", "--short", "HEAD")
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return f"{revision or 'unknown'}{'+changes' if changed else ''}"


def _git(root: Path, *arguments: str) -> str:
    try:
        result = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return result.stdout.strip()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"

"""The machine of a measurement: the header of the report."""

import os
import platform
from datetime import UTC, datetime
from pathlib import Path

from modelspec.machine import cpu_name, git_commit, installed_versions, usable_cores

PACKAGES = ("nvidia-pytriton", "onnxruntime", "fastapi", "uvicorn", "grpcio")


def describe(root: Path) -> dict[str, str]:
    """The header of the report; ``load`` is the machine's load before the benchmark."""
    missing = dict.fromkeys(PACKAGES, "not installed")
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git_commit(root, short=True) or "unknown",
        "cpu": cpu_name(),
        "cores": str(usable_cores()),
        "load": f"{os.getloadavg()[0]:.2f}",
        "python": platform.python_version(),
        **missing,
        **installed_versions(PACKAGES),
    }

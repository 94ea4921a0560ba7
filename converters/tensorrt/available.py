"""What a TensorRT engine needs here: a GPU with its driver, and the package ``tensorrt``."""

import csv
import importlib.util
import os
import subprocess
from dataclasses import dataclass

from converters.errors import EngineUnavailable

TIMEOUT_S = 30.0
GET_GPU = "run this on a machine with an NVIDIA GPU and its driver (docs/gpu.md)"
GET_PACKAGE = "pip install 'tidegate[tensorrt]' on the machine with the GPU (docs/gpu.md)"


@dataclass(frozen=True)
class Gpu:
    """The first GPU that CUDA lists. ``compute_capability`` as NVIDIA writes it, "9.0"."""

    name: str
    compute_capability: str
    driver: str


def missing() -> str:
    """Which of the two is missing and how to get it, in one line; "" if both are there."""
    try:
        find_gpu()
        require_package()
    except EngineUnavailable as error:
        return str(error)
    return ""


def find_gpu() -> Gpu:
    """The GPU that nvidia-smi (part of the driver) reports; EngineUnavailable without one."""
    command = ["nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]
    # By default CUDA lists the fastest GPU first, and nvidia-smi goes by the slot.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    # nvidia-smi ignores this variable, but accepts its values: indices and UUIDs.
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    try:
        process = subprocess.run(
            [*command, f"--id={first}"], capture_output=True, text=True, timeout=TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        raise EngineUnavailable(f"no NVIDIA GPU: nvidia-smi not found; {GET_GPU}") from None
    rows = [row for row in csv.reader(process.stdout.splitlines(), skipinitialspace=True) if row]
    if process.returncode or not rows or len(rows[0]) != 3:
        output = " ".join((process.stdout + process.stderr).split())[:200] or "nothing"
        raise EngineUnavailable(f"no NVIDIA GPU: nvidia-smi says {output!r}; {GET_GPU}")
    return Gpu(*(cell.strip() for cell in rows[0]))


def require_package() -> None:
    """EngineUnavailable if ``import tensorrt`` does not give a usable package."""
    spec = importlib.util.find_spec("tensorrt")
    # Type stubs leave a folder without a module, which Python imports as an empty namespace.
    if spec is None or spec.origin is None:
        raise EngineUnavailable(f"the package tensorrt is not installed: {GET_PACKAGE}")
    try:
        importlib.import_module("tensorrt")
    except (ImportError, OSError) as error:  # bindings without their libraries
        reason = " ".join(str(error).split())[:200]
        raise EngineUnavailable(
            f"the package tensorrt cannot be loaded ({reason}): {GET_PACKAGE}"
        ) from error

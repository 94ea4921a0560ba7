"""CUDA: its libraries from Python packages, and its own words where it does not start."""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime as ort

DRIVER = "libcuda.so.1"
PROVIDER = Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"


def preload() -> None:
    """Load CUDA and cuDNN from the packages nvidia-* beside onnxruntime; prints what is missing
    there, which may still be where the loader looks."""
    ort.preload_dlls(directory="")


def why_not_started(load: Callable[[str], Any] = ctypes.CDLL) -> str:
    """Why ONNX Runtime could not use CUDA, in the words of the loader or of CUDA's driver; a hint
    at Triton's log if neither finds fault."""
    for library in (DRIVER, str(PROVIDER)):
        try:
            load(library)
        except OSError as error:
            return str(error)
    driver, count = load(DRIVER), ctypes.c_int()
    code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if code:
        text = ctypes.c_char_p()
        driver.cuGetErrorString(code, ctypes.byref(text))
        return f"CUDA error {code}: {(text.value or b'unknown').decode()}"
    if not count.value:
        return "CUDA finds no GPU"
    return "CUDA itself starts: see ONNX Runtime's lines in Triton's log"

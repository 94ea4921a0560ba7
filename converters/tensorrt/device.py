"""Memory and a stream on the GPU, through the CUDA driver API (package cuda-bindings)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from converters.errors import EngineFailed


class Device:
    """The first GPU that CUDA lists, with one stream. Not thread-safe."""

    def __init__(self) -> None:
        from cuda.bindings import driver

        self._cuda = driver
        self._call(driver.cuInit(0))
        device = self._call(driver.cuDeviceGet(0))
        self._call(driver.cuCtxSetCurrent(self._call(driver.cuDevicePrimaryCtxRetain(device))))
        self._stream = self._call(driver.cuStreamCreate(0))

    @property
    def stream(self) -> int:
        return int(self._stream)

    @contextmanager
    def buffer(self, array: np.ndarray) -> Iterator[int]:
        """The address of GPU memory of the array's size; freed afterwards."""
        # CUDA allocates no block of 0 bytes, but TensorRT needs an address for empty tensors too.
        address = self._call(self._cuda.cuMemAlloc(max(1, array.nbytes)))
        try:
            yield int(address)
        finally:
            self._call(self._cuda.cuMemFree(address))

    def put(self, array: np.ndarray, address: int) -> None:
        """Copy a contiguous array to the GPU, in stream order."""
        if array.nbytes:
            source = array.ctypes.data
            self._call(self._cuda.cuMemcpyHtoDAsync(address, source, array.nbytes, self._stream))

    def get(self, address: int, array: np.ndarray) -> None:
        """Fill a contiguous array from the GPU, in stream order."""
        if array.nbytes:
            target = array.ctypes.data
            self._call(self._cuda.cuMemcpyDtoHAsync(target, address, array.nbytes, self._stream))

    def wait(self) -> None:
        """Return when the stream has finished."""
        self._call(self._cuda.cuStreamSynchronize(self._stream))

    def _call(self, result: tuple[Any, ...]) -> Any:
        """The value of a driver call; EngineFailed with the name of its error."""
        error, *values = result
        if int(error):
            raise EngineFailed(f"the CUDA driver reports {error.name}: see nvidia-smi and dmesg")
        return values[0] if values else None

"""Memory and a stream on the GPU, by the CUDA driver's own interface (package cuda-bindings)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from converters.errors import EngineFailed


class Device:
    """The GPU that CUDA shows first, with one stream. Not for several threads."""

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
    def room(self, array: np.ndarray) -> Iterator[int]:
        """The address of as much memory on the GPU as the array has; freed afterwards."""
        # CUDA gives no block of 0 bytes, and TensorRT wants an address for an empty tensor too.
        address = self._call(self._cuda.cuMemAlloc(max(1, array.nbytes)))
        try:
            yield int(address)
        finally:
            self._call(self._cuda.cuMemFree(address))

    def put(self, array: np.ndarray, address: int) -> None:
        """Copy a contiguous array to the GPU, in the stream's order."""
        if array.nbytes:
            source = array.ctypes.data
            self._call(self._cuda.cuMemcpyHtoDAsync(address, source, array.nbytes, self._stream))

    def get(self, address: int, array: np.ndarray) -> None:
        """Fill a contiguous array from the GPU, in the stream's order."""
        if array.nbytes:
            target = array.ctypes.data
            self._call(self._cuda.cuMemcpyDtoHAsync(target, address, array.nbytes, self._stream))

    def wait(self) -> None:
        """Return when the stream has done everything."""
        self._call(self._cuda.cuStreamSynchronize(self._stream))

    def _call(self, answer: tuple[Any, ...]) -> Any:
        """What a call of the driver gave; EngineFailed with its name for the error."""
        error, *given = answer
        if int(error):
            raise EngineFailed(f"the CUDA driver says {error.name}: see nvidia-smi and dmesg")
        return given[0] if given else None

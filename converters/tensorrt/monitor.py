"""TensorRT's two callbacks: its log and its progress.

Every TensorRT name in this file is looked up in the binaries of two releases
(tests/converters/tensorrt/test_trt_names.py).
"""

import tensorrt as trt

from converters.tensorrt.progress import ProgressLine


class Log(trt.ILogger):
    """Collects the errors, for the message of the exception."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
            self.errors += [msg]


class Monitor(trt.IProgressMonitor):
    """Passes TensorRT's phases on to a ``ProgressLine``."""

    def __init__(self, line: ProgressLine) -> None:
        trt.IProgressMonitor.__init__(self)
        self._line = line

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        self._line.started(phase_name, parent_phase, num_steps)

    def step_complete(self, phase_name: str, step: int) -> bool:
        return self._line.stepped(phase_name, step)

    def phase_finish(self, phase_name: str) -> None:
        self._line.finished(phase_name)

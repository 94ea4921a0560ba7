"""What runs a converted engine for its proof: ONNX Runtime, or ``converters.trt_runner``.

A proof asks ``run(names, feed)`` and nothing else, so that every engine of a model is measured by
the same checks.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol


class Runner(Protocol):
    """One engine, loaded."""

    def run(self, names: Sequence[str] | None, feed: Mapping[str, Any]) -> list[Any]:
        """The outputs with these names, None: all in the engine's order. Raises whatever the
        engine raises: what does not run is for the checks to report."""


OpenRunner = Callable[[Path], Runner]
THREADS = 2
# A setting of ONNX Runtime: see ``converters.offline`` for what its threads would else do.
NO_SPINNING = "session.intra_op.allow_spinning"


def onnx_runner(engine: Path) -> Runner:
    """The graph in ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.add_session_config_entry(NO_SPINNING, "0")
    options.log_severity_level = 4  # what goes wrong is raised as well
    providers = ["CPUExecutionProvider"]
    session: Runner = onnxruntime.InferenceSession(str(engine), options, providers=providers)
    return session

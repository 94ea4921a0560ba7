"""What runs a converted engine for its proof: ONNX Runtime, or ``converters.tensorrt.runner``.

A proof calls ``run(names, feed)`` and nothing else, so that the same checks measure every engine of
a model.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol


class Runner(Protocol):
    """One engine, loaded."""

    def run(self, names: Sequence[str] | None, feed: Mapping[str, Any]) -> list[Any]:
        """The outputs with these names; None: all, in the engine's order. Raises whatever the
        engine raises: the checks report it."""


OpenRunner = Callable[[Path], Runner]
THREADS = 2
# A setting of ONNX Runtime; ``converters.offline`` says why its threads must not spin.
NO_SPINNING = "session.intra_op.allow_spinning"


def onnx_runner(engine: Path) -> Runner:
    """The graph in ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.add_session_config_entry(NO_SPINNING, "0")
    options.log_severity_level = 4  # errors are raised as well
    providers = ["CPUExecutionProvider"]
    session: Runner = onnxruntime.InferenceSession(str(engine), options, providers=providers)
    return session

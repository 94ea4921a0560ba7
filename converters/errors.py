"""What can go wrong in a conversion.

ConversionError             the message says what failed and what to do
|- SourceMissing            the weights or a required package are missing
|- SourceRefused            the source is broken, unsafe or not for this task
|- ExportFailed             the graph could not be exported or written in this precision
|- ProofFailed              the converted model does not give the original's answers
|- EngineUnavailable        no TensorRT here: the GPU or the package is missing
`- EngineFailed             TensorRT could not build or run the engine
"""

from collections.abc import Iterator
from contextlib import contextmanager


class ConversionError(RuntimeError):
    """The base of the tree above."""


class SourceMissing(ConversionError):
    pass


class SourceRefused(ConversionError):
    pass


class ExportFailed(ConversionError):
    pass


class ProofFailed(ConversionError):
    pass


class EngineUnavailable(ConversionError):
    pass


class EngineFailed(ConversionError):
    pass


@contextmanager
def no_traceback(error_class: type[ConversionError], what: str, remedy: str) -> Iterator[None]:
    """Turn any exception of a library into an ``error_class`` of one line: ``what`` failed, the
    library's own reason, and the ``remedy``. A ConversionError passes unchanged."""
    try:
        yield
    except ConversionError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or "no reason given"
        raise error_class(f"{what} ({type(error).__name__}: {reason}): {remedy}") from error

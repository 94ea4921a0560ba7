"""What can go wrong in a conversion.

ConversionError             the message says what failed and what to do
|- SourceMissing            the weights or their package are not there
|- SourceRefused            they are there, but broken, unsafe or not for this task
|- ExportFailed             the framework's exporter gave up
|- ProofFailed              the converted model does not give the original's answers
|- EngineUnavailable        no TensorRT here: the GPU or the package is missing
`- EngineFailed             TensorRT gave up
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
def no_traceback(kind: type[ConversionError], what: str, todo: str) -> Iterator[None]:
    """Whatever a library raises inside becomes a ``kind`` of one line: ``what`` could not be done,
    the library's own reason, and ``todo``. A ConversionError passes as it is."""
    try:
        yield
    except ConversionError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or "no reason given"
        raise kind(f"{what} ({type(error).__name__}: {reason}): {todo}") from error

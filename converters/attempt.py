"""A graph or a server that fails altogether is a failed check, with its reason, not a traceback."""

from collections.abc import Callable

from converters.proof import Check


def attempted(what: str, checks: Callable[[], list[Check]]) -> list[Check]:
    """The checks; or, when they cannot even be made, one that failed and says why."""
    try:
        return checks()
    except Exception as error:  # neither ONNX Runtime's errors nor a client's share a base class
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return [Check(f"{what}: runs at all", float("nan"), 0.0, False, reason)]

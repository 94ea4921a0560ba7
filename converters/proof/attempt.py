"""A graph or server that cannot run at all is a failed check with its reason, not a traceback."""

from collections.abc import Callable

from converters.proof.checks import Check


def attempted(what: str, checks: Callable[[], list[Check]]) -> list[Check]:
    """The checks; if they cannot even be run, one failed check that says why."""
    try:
        return checks()
    except Exception as error:  # ONNX Runtime's and the client's errors share no base class
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return [Check(f"{what}: runs at all", float("nan"), 0.0, False, reason)]

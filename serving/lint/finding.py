"""One problem that the linter reports."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """ERROR: Triton or the gateway refuses it. WARNING: it runs, but causes trouble. INFO: good to
    know."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True)
class Finding:
    """``place`` is a path in the repository, with the tensor or step after a colon."""

    code: str
    severity: Severity
    place: str
    message: str
    fix: str


def error(code: str, place: str, message: str, fix: str) -> Finding:
    return Finding(code, Severity.ERROR, place, message, fix)


def warning(code: str, place: str, message: str, fix: str) -> Finding:
    return Finding(code, Severity.WARNING, place, message, fix)


def info(code: str, place: str, message: str, fix: str) -> Finding:
    return Finding(code, Severity.INFO, place, message, fix)


def one_of(names: Iterable[str]) -> str:
    """The fix for an unknown name."""
    return f"use one of: {', '.join(sorted(names)) or '(there are none)'}"

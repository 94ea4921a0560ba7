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
    """``location`` is a path in the repository, with the tensor or step after a colon."""

    code: str
    severity: Severity
    location: str
    message: str
    fix: str


def error(code: str, location: str, message: str, fix: str) -> Finding:
    return Finding(code, Severity.ERROR, location, message, fix)


def warning(code: str, location: str, message: str, fix: str) -> Finding:
    return Finding(code, Severity.WARNING, location, message, fix)


def info(code: str, location: str, message: str, fix: str) -> Finding:
    return Finding(code, Severity.INFO, location, message, fix)


def one_of(names: Iterable[str]) -> str:
    """The fix for an unknown name."""
    return f"use one of: {', '.join(sorted(names)) or '(there are none)'}"

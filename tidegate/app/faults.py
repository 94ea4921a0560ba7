"""The linter's errors in the models that are about to be served."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from serving.errors import ServingError
from serving.repository.configs import pins
from serving.repository.model_repository import ModelRepository

if TYPE_CHECKING:
    from serving.lint.finding import Finding

SHOWN = 5
_PROFILE = re.compile(r"\(with the configs '([^']*)'\)\Z|^[^/]+/configs/([^/]+)\.pbtxt")


def require_loadable(repository: ModelRepository, models: Iterable[str], config: str) -> None:
    """Raises ServingError with the lint errors of these models and their members. ``config`` is the
    config profile that is served, for the models that have it."""
    from serving.lint.check import lint

    served = with_members(repository, models)
    errors = [
        finding
        for finding in lint(repository)
        if finding.severity == "error"
        and finding.code
        != "step-refused"  # the step's own errors are listed, for the configs it serves
        and re.split("[/:]", finding.location)[0] in served
        and _profile(finding) in (None, config)
    ]
    if not errors:
        return
    lines = [
        f"  {finding.location}: {finding.message} [{finding.code}]: {finding.fix}"
        for finding in errors[:SHOWN]
    ]
    if len(errors) > SHOWN:
        lines.append(f"  and {len(errors) - SHOWN} more")
    raise ServingError(
        "\n".join(
            [
                "Triton or the gateway would refuse these models (tidegate lint shows all errors;"
                " --no-lint tries anyway):",
                *lines,
            ]
        )
    )


def with_members(repository: ModelRepository, models: Iterable[str]) -> set[str]:
    """The models and, for pipelines, their members, including those of nested pipelines."""
    members: set[str] = set()
    pending = list(models)
    while pending:
        model = pending.pop()
        if model in members:
            continue
        members.add(model)
        try:
            pending.extend(pins(repository.config(model)))
        except (ServingError, OSError):
            continue  # the linter reports it
    return members


def _profile(finding: "Finding") -> str | None:
    """The config profile that a finding is about; None if it is about all of them."""
    match = _PROFILE.search(finding.message) or _PROFILE.search(finding.location)
    return (match[1] or match[2]) if match else None

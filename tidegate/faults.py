"""What the linter says of the models that are about to be served."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from serving.errors import ServingError
from serving.pins import pins
from serving.repository import read_config

if TYPE_CHECKING:
    from serving.lint.finding import Finding

SHOWN = 5
_VARIANT = re.compile(r"\(with the configs '([^']*)'\)\Z|^[^/]+/configs/([^/]+)\.pbtxt")


def require_loadable(repository: Path, models: Iterable[str], config: str) -> None:
    """ServingError names the errors of these models and of what they are made of. ``config`` is the
    config profile of the configs that is served, where a model has it."""
    from serving.lint.check import lint

    served = with_members(repository, models)
    found = [
        each
        for each in lint(repository)
        if each.severity == "error"
        and each.code != "step-refused"  # the step's own errors are here, of its served configs
        and re.split("[/:]", each.place)[0] in served
        and _profile(each) in (None, config)
    ]
    if not found:
        return
    lines = [f"  {each.place}: {each.message} [{each.code}]: {each.fix}" for each in found[:SHOWN]]
    if len(found) > SHOWN:
        lines.append(f"  and {len(found) - SHOWN} more")
    raise ServingError(
        "\n".join(
            [
                "Triton or the gateway would refuse what is to be served (tidegate lint shows all;"
                " --no-lint tries it all the same):",
                *lines,
            ]
        )
    )


def with_members(repository: Path, models: Iterable[str]) -> set[str]:
    """The models and, of pipelines, what they are made of, pipelines in pipelines too."""
    found: set[str] = set()
    waiting = list(models)
    while waiting:
        model = waiting.pop()
        if model in found:
            continue
        found.add(model)
        try:
            waiting.extend(pins(read_config(repository, model)))
        except (ServingError, OSError):
            continue  # the linter says it
    return found


def _profile(finding: "Finding") -> str | None:
    """The config profile of the configs that a finding is about; None: it holds for all."""
    match = _VARIANT.search(finding.message) or _VARIANT.search(finding.place)
    return (match[1] or match[2]) if match else None

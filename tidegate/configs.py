"""Which configs a Triton reads: the main ones, or ``configs/NAME.pbtxt`` where a model has one."""

from collections.abc import Callable, Iterator
from pathlib import Path

from serving.config_profiles import TUNED, profile_names
from serving.errors import ServingError
from serving.repository import is_published, top_models
from serving.tuning.journal import machine
from serving.tuning.outcome import is_of_another_engine, tuned_measurement

AUTO, DEFAULT = "auto", "default"


def config_name(repository: Path, wanted: str, say: Callable[[str], None]) -> str | None:
    """The name for ``--model-config-name``; None for the main configs. ``auto`` is ``tuned`` where
    something was tuned. ServingError when no model has the configs that are wanted."""
    names = profile_names(repository)
    if wanted == DEFAULT or (wanted == AUTO and TUNED not in names):
        return None
    name = TUNED if wanted == AUTO else wanted
    if name not in names:
        there = ", ".join([DEFAULT, *sorted(names)])
        raise ServingError(f"no model has configs/{name}.pbtxt: choose --config from {there}")
    what = "; ".join(tuned_lines(repository)) if name == TUNED else ""
    models = what or f"of {', '.join(names[name])}"
    say(f"configs {name}: {models} (--config default turns them off)")
    return name


def tuned_lines(repository: Path) -> Iterator[str]:
    """A line on each pipeline that was tuned."""
    for name in top_models(repository):
        if is_published(repository, name) and (line := tuned_line(repository, name)):
            yield line


def tuned_line(repository: Path, name: str) -> str:
    """What was measured of a pipeline, and whether it still holds; '' where nothing was."""
    measured = tuned_measurement(repository, name)
    if not measured:
        return ""
    doubts = []
    if is_of_another_engine(repository, name, measured):
        doubts.append("of another engine or step than serves now")
    if measured["machine"] != machine():
        doubts.append("on another machine")
    doubt = f", {' and '.join(doubts)}: tidegate optimize {name} measures again" if doubts else ""
    return (
        f"{name} {measured['ratio']:.2f}x the default at {measured['connections']} connections, "
        f"measured {measured['made_at'][:10]}{doubt}"
    )

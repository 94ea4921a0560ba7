"""``configs/NAME.pbtxt``: the repository as a Triton with ``--model-config-name=NAME`` sees it."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from serving.lint.finding import Finding, warning
from serving.lint.reading import Model, Models
from serving.repository.pins import listed_versions, pins
from serving.repository.profiles import read_profiles

Check = Callable[[Model, Models], Iterator[Finding]]


def check(model: Model, models: Models, check_one: Check) -> Iterator[Finding]:
    """What is wrong with a model under each config profile that affects it, and not already under
    the main configs."""
    known = {_key(finding) for finding in check_one(model, models)}
    for name in _names(model, models):
        view = {other.name: _under(name, other) for other in models.values()}
        profile = view[model.name]
        yield from _behind(model, profile)
        for finding in check_one(profile, view):
            if _key(finding) not in known:
                yield replace(finding, message=f"{finding.message} (with the configs {name!r})")


def _names(model: Model, models: Models) -> list[str]:
    """The names of the config profiles of the model itself and, for an ensemble, of its steps."""
    folders = [model.folder]
    if model.is_ensemble:
        folders += [models[step].folder for step in pins(model.config) if step in models]
    return sorted({name for folder in folders for name in read_profiles(folder)})


def _under(name: str, model: Model) -> Model:
    profile = read_profiles(model.folder).get(name)
    if profile is None:
        return model
    return replace(model, written=profile, file=f"configs/{name}.pbtxt")


def _behind(model: Model, profile: Model) -> Iterator[Finding]:
    for what, expected, actual in (
        ("versions", listed_versions(model.config), listed_versions(profile.config)),
        ("pins", pins(model.config), pins(profile.config)),
    ):
        if expected and expected != actual:
            yield warning(
                "config-profile-behind",
                profile.location,
                f"has other {what} ({actual or 'none'}) than {model.location} ({expected}): a "
                "Triton that reads it serves something else",
                "tidegate up, or the next publication, updates it; or edit it by hand",
            )


def _key(finding: Finding) -> tuple[str, str]:
    return finding.code, finding.message

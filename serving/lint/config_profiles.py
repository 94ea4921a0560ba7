"""``configs/NAME.pbtxt``: the repository as a Triton with ``--model-config-name=NAME`` sees it."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from tritonclient.grpc.model_config_pb2 import ModelConfig

from serving.lint.finding import Finding, warning
from serving.lint.reading import Model, Models
from serving.repository.configs import pins, policy_versions
from serving.repository.model_repository import ModelRepository

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
    parts = [model]
    if model.is_ensemble:
        parts += [models[step] for step in pins(model.config) if step in models]
    return sorted({name for part in parts for name in _profiles(part)})


def _profiles(model: Model) -> dict[str, ModelConfig]:
    return ModelRepository(model.folder.parent).profiles(model.name)


def _under(name: str, model: Model) -> Model:
    profile = _profiles(model).get(name)
    if profile is None:
        return model
    return replace(model, written=profile, file=f"configs/{name}.pbtxt")


def _behind(model: Model, profile: Model) -> Iterator[Finding]:
    for what, expected, actual in (
        ("versions", policy_versions(model.config), policy_versions(profile.config)),
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

"""An ensemble's steps: do they exist, in that version, and can they run in some order?"""

from collections.abc import Iterator
from typing import Any

from serving.lint import wires
from serving.lint.finding import Finding, error, one_of, warning
from serving.lint.reading import Model, Repository
from serving.pins import NEWEST


def check(model: Model, repository: Repository) -> Iterator[Finding]:
    if not model.is_ensemble:
        return
    yield from _ensemble(model)
    for index, step in enumerate(model.config.ensemble_scheduling.step):
        yield from _step(model, repository, index, step)
    yield from wires.check(model, repository)
    yield from _cycles(model)


def _ensemble(model: Model) -> Iterator[Finding]:
    config = model.config
    if not config.ensemble_scheduling.step:
        yield error(
            "ensemble-empty", model.place, "has no steps", "add ensemble_scheduling { step }"
        )
    if config.platform != "ensemble":
        yield error(
            "ensemble-platform",
            model.place,
            "has steps, and its platform is not ensemble",
            'write platform: "ensemble" and no backend',
        )
    if config.instance_group:
        yield error(
            "ensemble-instances",
            model.place,
            "has an instance_group, and an ensemble runs in no instance of its own",
            "delete it; give instances to the steps",
        )


def _step(model: Model, repository: Repository, index: int, step: Any) -> Iterator[Finding]:
    place = f"{model.place}:step {index + 1} ({step.model_name})"
    member = repository.get(step.model_name)
    if member is None:
        there = ", ".join(sorted(set(repository) - {model.name})[:12])
        yield error(
            "step-unknown", place, "is not in the repository", f"add it, or use one of: {there}"
        )
        return
    yield from _pin(place, member, step.model_version)
    if member.written is None:
        return
    yield from _step_names(place, member.config, step)
    yield from _step_batch(model, member, place)
    if member.config.model_transaction_policy.decoupled:
        yield warning(
            "step-decoupled",
            place,
            "is decoupled, which makes the ensemble decoupled: /infer and /generate refuse it",
            "call it by gRPC stream only, or take the decoupled step out",
        )


def _pin(place: str, member: Model, version: int) -> Iterator[Finding]:
    if version in (NEWEST, 0):
        if len(member.versions) > 1:
            yield warning(
                "step-unpinned",
                place,
                f"follows the newest version: it moves to it before anybody has asked it anything "
                f"(there are {', '.join(map(str, member.versions))})",
                "pin one: model_version: " + str(member.served[-1] if member.served else 1),
            )
    elif version not in member.versions:
        there = ", ".join(map(str, member.versions)) or "none"
        yield error(
            "pin-missing", place, f"pins version {version}; there are {there}", "pin one of these"
        )
    elif version not in member.served:
        yield error(
            "pin-not-served",
            place,
            f"pins version {version}, which the version_policy of {member.name} does not serve",
            f"add {version} to version_policy {{ specific }} in {member.place}",
        )


def _step_names(place: str, member: Any, step: Any) -> Iterator[Finding]:
    inputs = {tensor.name: tensor for tensor in member.input}
    outputs = {tensor.name for tensor in member.output}
    for name in sorted(set(step.input_map) - set(inputs) if inputs else ()):
        yield error("map-unknown", place, f"has no input {name!r}", one_of(inputs))
    for name in sorted(set(step.output_map) - outputs if outputs else ()):
        yield error("map-unknown", place, f"has no output {name!r}", one_of(outputs))
    for name, tensor in inputs.items():
        if name not in step.input_map and not tensor.optional:
            yield error(
                "input-unmapped", place, f"its input {name!r} gets nothing", "add it to input_map"
            )


def _step_batch(model: Model, member: Model, place: str) -> Iterator[Finding]:
    whole = model.config.max_batch_size
    part = member.config.max_batch_size
    if part < whole:
        yield error(
            "batch-too-large",
            place,
            f"takes batches of {part or 'no'} rows, and the ensemble promises {whole}",
            f"set the ensemble's max_batch_size to {part}, or the step's to {whole}",
        )


def _cycles(model: Model) -> Iterator[Finding]:
    """Steps that wait for each other: take away what can run until nothing more can."""
    config = model.config
    waiting = list(config.ensemble_scheduling.step)
    made = {tensor.name for tensor in config.input}
    everything = made | {name for step in waiting for name in step.output_map.values()}
    while ready := [s for s in waiting if set(s.input_map.values()) & everything <= made]:
        made |= {name for step in ready for name in step.output_map.values()}
        waiting = [step for step in waiting if step not in ready]
    if waiting:
        names = ", ".join(step.model_name for step in waiting)
        yield error(
            "cycle",
            model.place,
            f"steps wait for each other and none can begin: {names}",
            "let one of them read what is made before it",
        )

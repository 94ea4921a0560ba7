"""An ensemble's steps: do they exist, in the pinned version, and can they run in some order?"""

from collections.abc import Iterator

from tritonclient.grpc.model_config_pb2 import ModelEnsembling

from serving.lint import wires
from serving.lint.finding import Finding, error, one_of, warning
from serving.lint.reading import Model, Models
from serving.repository.configs import NEWEST

# Fields that an ensemble cannot have, because it has no instances.
_INSTANCE_FIELDS = ("optimization", "model_warmup")


def check(model: Model, models: Models) -> Iterator[Finding]:
    if not model.is_ensemble:
        return
    yield from _ensemble(model)
    for index, step in enumerate(model.config.ensemble_scheduling.step):
        yield from _step(model, models, index, step)
    yield from wires.check(model, models)
    yield from _cycles(model)
    yield from _recursion(model, models)
    yield from _streams(model, models)


def _ensemble(model: Model) -> Iterator[Finding]:
    config = model.config
    if not config.ensemble_scheduling.step:
        yield error(
            "ensemble-empty", model.location, "has no steps", "add ensemble_scheduling { step }"
        )
    if config.platform != "ensemble":
        yield error(
            "ensemble-platform",
            model.location,
            "has steps, but its platform is not ensemble",
            'write platform: "ensemble" and no backend',
        )
    elif config.backend:
        yield error(
            "ensemble-platform",
            model.location,
            f"is an ensemble, but names the backend {config.backend!r}",
            "remove backend",
        )
    if config.instance_group:
        yield error(
            "ensemble-instances",
            model.location,
            "has an instance_group, but an ensemble has no instances of its own",
            "delete it; give instances to the steps",
        )
    written = {field.name for field, _ in config.ListFields()}
    for name in sorted(written.intersection(_INSTANCE_FIELDS)):
        yield error(
            "ensemble-instances",
            model.location,
            f"has {name}, but an ensemble has no instances of its own",
            "move it to a step",
        )


def _step(
    model: Model, models: Models, index: int, step: ModelEnsembling.Step
) -> Iterator[Finding]:
    location = f"{model.location}:step {index + 1} ({step.model_name})"
    for name in ("model_name", "input_map", "output_map"):
        if not getattr(step, name):
            yield error("step-incomplete", location, f"has no {name}", f"write {name}")
    if not step.model_name:
        return
    member = models.get(step.model_name)
    if member is None:
        names = ", ".join(sorted(set(models) - {model.name})[:12])
        yield error(
            "step-unknown", location, "is not in the repository", f"add it, or use one of: {names}"
        )
        return
    yield from _pin(location, member, step.model_version)
    yield from _step_names(location, member, step)
    yield from _step_batch(model, member, location)
    if member.config.model_transaction_policy.decoupled:
        yield warning(
            "step-decoupled",
            location,
            "is decoupled, which makes the ensemble decoupled: /infer and /generate refuse it",
            "only call it over a gRPC stream, or remove the decoupled step",
        )


def _pin(location: str, member: Model, version: int) -> Iterator[Finding]:
    if version == NEWEST:
        if len(member.versions) > 1:
            yield warning(
                "step-unpinned",
                location,
                f"follows the newest version: the ensemble moves to it before it has been probed "
                f"(there are {', '.join(map(str, member.versions))})",
                "pin one: model_version: " + str(member.served[-1] if member.served else 1),
            )
    elif version not in member.versions:
        available = ", ".join(map(str, member.versions)) or "none"
        note = "" if version else " (the default if model_version is not written)"
        yield error(
            "pin-missing",
            location,
            f"pins version {version}{note}; there are {available}",
            "pin one of these, or -1 for the newest",
        )
    elif version not in member.served:
        yield error(
            "pin-not-served",
            location,
            f"pins version {version}, which the version_policy of {member.name} does not serve",
            f"add {version} to version_policy {{ specific }} in {member.location}",
        )


def _step_names(location: str, member: Model, step: ModelEnsembling.Step) -> Iterator[Finding]:
    config = member.completed
    inputs = {tensor.name: tensor for tensor in config.input}
    outputs = {tensor.name for tensor in config.output}
    # A model that completes its config when it is loaded may have more tensors than are written.
    if member.written is None and member.may_complete:
        return
    is_final = not member.may_complete
    for name in sorted(set(step.input_map) - set(inputs) if inputs or is_final else ()):
        if is_final or member.backend != "python":
            yield error("map-unknown", location, f"has no input {name!r}", one_of(inputs))
    for name in sorted(set(step.output_map) - outputs if outputs or is_final else ()):
        if is_final or member.backend != "python":
            yield error("map-unknown", location, f"has no output {name!r}", one_of(outputs))
    for name, tensor in inputs.items():
        if name not in step.input_map and not tensor.optional:
            yield error(
                "input-unmapped",
                location,
                f"its input {name!r} is not mapped",
                "add it to input_map",
            )


def _step_batch(model: Model, member: Model, location: str) -> Iterator[Finding]:
    ensemble_rows = model.config.max_batch_size
    step_rows = member.completed.max_batch_size
    # A step without a batch axis may be part of an ensemble with one: the wires decide. Only a
    # Python model may raise the max_batch_size that is written.
    may_grow = member.may_complete and member.backend == "python"
    if 0 < step_rows < ensemble_rows and not may_grow:
        yield error(
            "batch-too-large",
            location,
            f"takes batches of {step_rows} rows, but the ensemble promises {ensemble_rows}",
            f"set the ensemble's max_batch_size to {step_rows}, or the step's to {ensemble_rows}",
        )


def _cycles(model: Model) -> Iterator[Finding]:
    """Steps that wait for each other: remove what can run until nothing else can."""
    config = model.config
    waiting = list(config.ensemble_scheduling.step)
    produced = {tensor.name for tensor in config.input}
    all_tensors = produced | {name for step in waiting for name in step.output_map.values()}
    while ready := [s for s in waiting if set(s.input_map.values()) & all_tensors <= produced]:
        produced |= {name for step in ready for name in step.output_map.values()}
        waiting = [step for step in waiting if step not in ready]
    if waiting:
        names = ", ".join(step.model_name for step in waiting)
        yield error(
            "cycle",
            model.location,
            f"steps wait for each other, so none can begin: {names}",
            "let one of them read what is produced before it",
        )


def _recursion(model: Model, models: Models) -> Iterator[Finding]:
    """An ensemble that is a step of itself, or of one of its steps."""
    seen: set[str] = set()
    paths = [[model.name, name] for name in _parts(model)]
    while paths:
        path = paths.pop()
        if path[-1] == model.name:
            yield error(
                "cycle",
                model.location,
                f"is part of itself: {' -> '.join(path)}",
                "remove one of these steps",
            )
            return
        if path[-1] not in seen and path[-1] in models:
            seen.add(path[-1])
            paths.extend([*path, name] for name in _parts(models[path[-1]]))


def _streams(model: Model, models: Models) -> Iterator[Finding]:
    """No step may take tensors from two sources if one of them responds more than once: nothing
    says which responses belong together. The ensemble's caller counts as a step."""
    sources: dict[str, int] = {tensor.name: 0 for tensor in model.config.input}
    waiting = list(model.config.ensemble_scheduling.step)
    count = 0
    while ready := [step for step in waiting if set(step.input_map.values()) <= set(sources)]:
        for step in ready:
            origins = {sources[name] for name in step.input_map.values()}
            if len(origins) > 1:
                yield _joined(model, f"step {step.model_name}")
                return
            member = models.get(step.model_name)
            origin = origins.pop() if origins else 0
            if member is not None and is_decoupled(member, models):
                count += 1
                origin = count
            sources.update(dict.fromkeys(step.output_map.values(), origin))
        waiting = [step for step in waiting if step not in ready]
    output_sources = {
        sources[tensor.name] for tensor in model.config.output if tensor.name in sources
    }
    if len(output_sources) > 1:
        yield _joined(model, "the caller")


def _joined(model: Model, consumer: str) -> Finding:
    return error(
        "streams-joined",
        model.location,
        f"{consumer} takes what a decoupled step produces together with tensors from elsewhere",
        "let everything after a decoupled step come from its responses",
    )


def is_decoupled(model: Model, models: Models, depth: int = 16) -> bool:
    """Whether the model may give any number of responses to a request. An ensemble does if a step
    does, whatever its own config says."""
    if not model.is_ensemble:
        return bool(model.config.model_transaction_policy.decoupled)
    members = [models[name] for name in _parts(model) if name in models]
    return depth > 0 and any(is_decoupled(member, models, depth - 1) for member in members)


def _parts(model: Model) -> list[str]:
    return [step.model_name for step in model.config.ensemble_scheduling.step]

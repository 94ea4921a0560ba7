"""How requests share a call: dynamic batching, and sequences with their controls and states."""

from collections.abc import Iterator
from typing import Any

from tritonclient.grpc.model_config_pb2 import DataType, ModelQueuePolicy, ModelSequenceBatching

from serving.lint.element_sizes import file_fault
from serving.lint.finding import Finding, error, warning
from serving.lint.reading import Model

_Kind = ModelSequenceBatching.Control.Kind
_CORRID = ModelSequenceBatching.Control.CONTROL_SEQUENCE_CORRID
_VALUES = ("int32_false_true", "fp32_false_true", "bool_false_true")
_CORRID_TYPES = (
    DataType.TYPE_UINT64,
    DataType.TYPE_INT64,
    DataType.TYPE_UINT32,
    DataType.TYPE_INT32,
    DataType.TYPE_STRING,
)
STATES = "initial_state"  # the folder beside the versions


def check(model: Model) -> Iterator[Finding]:
    config = model.config
    if config.max_batch_size < 0:
        yield error(
            "batch-negative",
            model.location,
            f"max_batch_size is {config.max_batch_size}",
            "write 0 for a model without a batch axis",
        )
    if model.is_ensemble:
        return
    yield from _axis(model)
    if config.HasField("dynamic_batching"):
        yield from _dynamic(model)
    if config.HasField("sequence_batching"):
        yield from _sequences(model)


def _axis(model: Model) -> Iterator[Finding]:
    config = model.completed
    tensors = [*config.input, *config.output]
    batched = config.max_batch_size > 0
    if not batched and model.config.HasField("dynamic_batching"):
        yield warning(
            "batching-without-batch",
            model.location,
            "asks for dynamic_batching, but max_batch_size is 0: nothing is ever merged",
            "set max_batch_size to what the model takes, and leave the batch axis out of dims",
        )
    elif not batched and len(tensors) > 1 and all(map(_leads_open, tensors)):
        yield warning(
            "batch-axis-in-dims",
            model.location,
            "every tensor begins with -1 and max_batch_size is 0: if that axis is the batch, "
            "Triton does not merge requests",
            "set max_batch_size and remove the first -1 from all dims, unless it is not the batch",
        )


def _dynamic(model: Model) -> Iterator[Finding]:
    batching = model.config.dynamic_batching
    yield from _preferred(model, batching.preferred_batch_size)
    levels = batching.priority_levels
    if levels:
        if not 1 <= batching.default_priority_level <= levels:
            yield _priority(
                model,
                f"default_priority_level is {batching.default_priority_level}, and there are "
                f"{levels} priority_levels",
                f"write default_priority_level: 1 (or up to {levels})",
            )
        for level in sorted(batching.priority_queue_policy):
            if 1 <= level <= levels:
                continue
            yield _priority(
                model,
                f"priority_queue_policy is for level {level}, and there are {levels}",
                f"use a key from 1 to {levels}",
            )
    if batching.preserve_ordering:
        if levels > 1:
            yield _priority(
                model,
                f"wants preserve_ordering and {levels} priority_levels",
                "remove one of them",
            )
        policies = [batching.default_queue_policy, *batching.priority_queue_policy.values()]
        if any(map(_delays, policies)):
            yield _priority(
                model,
                "wants preserve_ordering, but delays requests that timed out",
                "write timeout_action: REJECT, or remove preserve_ordering",
            )


def _delays(policy: ModelQueuePolicy) -> bool:
    return bool(
        policy.default_timeout_microseconds and policy.timeout_action == ModelQueuePolicy.DELAY
    )


def _priority(model: Model, message: str, fix: str) -> Finding:
    return error("queue-order", model.location, message, fix)


def _preferred(model: Model, sizes: Any) -> Iterator[Finding]:
    largest = model.config.max_batch_size
    for size in sizes:
        if size <= 0:
            yield error(
                "preferred-too-small",
                model.location,
                f"preferred_batch_size is {size}",
                "write 1 or more, or leave it out",
            )
        elif size > largest:
            yield error(
                "preferred-too-large",
                model.location,
                f"preferred_batch_size {size} is above max_batch_size {largest}"
                + ("" if largest else " (Triton looks before a backend completes the config)"),
                "raise one or lower the other",
            )


def _sequences(model: Model) -> Iterator[Finding]:
    batching = model.config.sequence_batching
    if model.config.response_cache.enable:
        yield error(
            "sequence-cached",
            model.location,
            "batches sequences and wants the response cache: Triton refuses that combination",
            "switch response_cache off",
        )
    yield from _preferred(model, batching.oldest.preferred_batch_size)
    share = batching.direct.minimum_slot_utilization
    if share < 0 or share > 1:
        yield error(
            "sequence-slots",
            model.location,
            f"minimum_slot_utilization is {share:g}",
            "write a fraction from 0 to 1",
        )
    yield from _controls(model)
    yield from _states(model)


def _controls(model: Model) -> Iterator[Finding]:
    seen_tensors: set[str] = set()
    seen_kinds: set[int] = set()
    for tensor in model.config.sequence_batching.control_input:
        location = f"{model.location}:{tensor.name or 'control_input'}"
        if not tensor.name:
            yield _control(location, "a control input has no name", "name it as the model does")
        elif tensor.name in seen_tensors:
            yield _control(
                location, "has two entries in control_input", "put its controls into one entry"
            )
        seen_tensors.add(tensor.name)
        for control in tensor.control:
            kind = _Kind.Name(control.kind) if control.kind in _Kind.values() else str(control.kind)
            if control.kind in seen_kinds:
                yield _control(location, f"is a second {kind}", "keep one")
            seen_kinds.add(control.kind)
            yield from _values(location, kind, control)


def _values(location: str, kind: str, control: ModelSequenceBatching.Control) -> Iterator[Finding]:
    written = [name for name in _VALUES if getattr(control, name)]
    if control.kind == _CORRID:
        if written:
            yield _control(
                location, f"is {kind}, which has no {written[0]}", f"remove {written[0]}"
            )
        if control.data_type not in _CORRID_TYPES:
            names = ", ".join(map(DataType.Name, _CORRID_TYPES))
            yield _control(
                location, f"is {kind}, but its type is not one of its types", f"use {names}"
            )
    elif len(written) != 1:
        yield _control(
            location,
            f"is {kind} with " + (" and ".join(written) or "no values"),
            "write one of them, such as int32_false_true: [ 0, 1 ]",
        )
    elif len(getattr(control, written[0])) != 2:
        yield _control(
            location, f"{written[0]} does not have two values", f"write {written[0]}: [ 0, 1 ]"
        )


def _control(location: str, message: str, fix: str) -> Finding:
    return error("sequence-control", location, message, fix)


def _states(model: Model) -> Iterator[Finding]:
    initialized: set[str] = set()
    for state in model.config.sequence_batching.state:
        location = f"{model.location}:{state.input_name or 'state'}"
        if len(state.initial_state) > 1:
            yield _state(location, "has two initial_states", "keep one")
        for initial in state.initial_state:
            if state.input_name in initialized:
                yield _state(location, "is initialized by two states", "keep one")
            initialized.add(state.input_name)
            yield from _initial(model, location, state, initial)
        if state.use_growable_memory:
            if not state.use_same_buffer_for_input_output:
                yield _growable(location, "without use_same_buffer_for_input_output")
            elif any(group.kind == group.KIND_CPU for group in model.config.instance_group):
                yield _growable(location, "and has instances on a CPU")


def _initial(
    model: Model,
    location: str,
    state: ModelSequenceBatching.State,
    initial: ModelSequenceBatching.InitialState,
) -> Iterator[Finding]:
    if not initial.name:
        yield _state(location, "its initial_state has no name", "name it")
    if initial.data_type != state.data_type:
        yield _state(location, "its initial_state has another data_type", "write the same one")
    dims, expected = list(initial.dims), list(state.dims)
    if -1 in dims:
        yield _state(location, f"its initial_state has open dims {dims}", "write their lengths")
    elif len(dims) != len(expected) or any(
        size not in (-1, dim) for dim, size in zip(dims, expected, strict=True)
    ):
        yield _state(
            location,
            f"its initial_state has dims {dims}, but the state has {expected}",
            "make them equal",
        )
    if initial.WhichOneof("state_data") is None:
        yield _state(location, "its initial_state has no data", "write zero_data: true")
    elif initial.data_file:
        file = model.folder / STATES / initial.data_file
        fault = file_fault(file, initial.data_type, dims)
        if fault:
            yield _state(
                location,
                f"its initial_state needs {STATES}/{file.name}, which {fault}",
                "put the bytes there, or write zero_data: true",
            )


def _state(location: str, message: str, fix: str) -> Finding:
    return error("sequence-state", location, message, fix)


def _growable(location: str, reason: str) -> Finding:
    return warning(
        "sequence-growable",
        location,
        f"wants use_growable_memory {reason}: it loads, and every sequence is refused",
        "remove use_growable_memory",
    )


def _leads_open(tensor: Any) -> bool:
    return len(tensor.dims) > 0 and tensor.dims[0] == -1

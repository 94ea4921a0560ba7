"""Fields that an older Triton does not know: it refuses the whole config."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from serving.lint.finding import Finding, error
from serving.lint.reading import Model

# The server in the wheel, and the default of --triton.
TRITON = (2, 51)
# The Triton version that added each field (message.field, or enum=value), from NVIDIA's
# model_config.proto, release by release. Fields older than 2.10 are not checked.
_ADDED_IN: Mapping[str, tuple[int, int]] = {
    "ModelInstanceGroup.host_policy": (2, 11),
    "ModelInstanceGroup.passive": (2, 11),
    "ModelInstanceGroup.secondary_devices": (2, 11),
    "ModelSequenceBatching.Control.bool_false_true": (2, 14),
    "ModelConfig.response_cache": (2, 15),
    "ModelSequenceBatching.state": (2, 16),
    "ModelInput.optional": (2, 18),
    "ModelSequenceBatching.State.initial_state": (2, 18),
    "BatchInput.Kind=BATCH_ITEM_SHAPE": (2, 20),
    "BatchInput.Kind=BATCH_ITEM_SHAPE_FLATTEN": (2, 20),
    "DataType=TYPE_BF16": (2, 22),
    "ModelWarmup.count": (2, 24),
    "ModelEnsembling.Step.model_namespace": (2, 32),
    "ModelSequenceBatching.StrategyOldest.preserve_ordering": (2, 37),
    "ModelSequenceBatching.State.use_growable_memory": (2, 40),
    "ModelSequenceBatching.State.use_same_buffer_for_input_output": (2, 40),
    "ModelSequenceBatching.iterative_sequence": (2, 40),
    "ModelConfig.runtime": (2, 42),
    "ModelInput.is_non_linear_format_io": (2, 49),
    "ModelOutput.is_non_linear_format_io": (2, 49),
    "ModelConfig.model_metrics": (2, 52),
    "ModelEnsembling.max_inflight_requests": (2, 63),
}


def check(model: Model, triton: tuple[int, int]) -> Iterator[Finding]:
    for name in sorted(set(_used(model.config))):
        added_in = _ADDED_IN.get(name)
        if added_in is not None and added_in > triton:
            field = name.partition("=")[2] or name.rpartition(".")[2]
            yield error(
                "field-newer",
                model.location,
                f"uses {field}, which Triton {_text(added_in)} added: {_text(triton)} refuses the "
                "file",
                f"remove it, or serve with {_text(added_in)} or newer (and lint with --triton)",
            )


def _used(message: Any) -> Iterator[str]:
    """The names, as in the table, of the fields that are set in a message and below it."""
    for field, value in message.ListFields():
        yield f"{_short(field.containing_type)}.{field.name}"
        for item in _values(field, value):
            if hasattr(item, "ListFields"):
                yield from _used(item)
            elif (
                field.type == FieldDescriptor.TYPE_ENUM and item in field.enum_type.values_by_number
            ):
                name = field.enum_type.values_by_number[item].name
                yield f"{_short(field.enum_type)}={name}"


def _values(field: Any, value: Any) -> Iterable[object]:
    if isinstance(value, str | bytes | int | float) or hasattr(value, "ListFields"):
        return [value]
    is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
    return list(value.values() if is_map else value)


def _short(descriptor: Any) -> str:
    return str(descriptor.full_name).partition(".")[2]


def _text(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))

"""Instance groups, and the samples that warm up instances."""

import re
from collections.abc import Iterator

from tritonclient.grpc.model_config_pb2 import ModelInput, ModelInstanceGroup, ModelWarmup

from serving.lint.element_sizes import file_fault
from serving.lint.finding import Finding, error, one_of
from serving.lint.reading import Model

WARMUPS = "warmup"  # the folder beside the versions
_TENSORRT = "tensorrt_plan"
_NO_GPUS = (ModelInstanceGroup.KIND_CPU, ModelInstanceGroup.KIND_MODEL)


def check(model: Model) -> Iterator[Finding]:
    if model.is_ensemble:
        return
    for group in model.config.instance_group:
        yield from _group(model, group)
    for sample in model.config.model_warmup:
        if sample.batch_size:  # otherwise Triton skips it
            yield from _warmup(model, sample)


def _group(model: Model, group: ModelInstanceGroup) -> Iterator[Finding]:
    kinds = ModelInstanceGroup.Kind
    if group.kind not in kinds.values():
        yield error("group-kind", model.location, f"has no kind {group.kind}", one_of(kinds.keys()))
    elif group.gpus and group.kind in _NO_GPUS:
        name = kinds.Name(group.kind)
        yield error(
            "group-gpus",
            model.location,
            f"an instance_group of {name} names gpus {list(group.gpus)}",
            f"write KIND_GPU, or remove gpus from the group of {name}",
        )
    if group.profile and model.resolved.platform != _TENSORRT:
        yield error(
            "group-profile",
            model.location,
            f"an instance_group has profile {list(group.profile)}, which only TensorRT plans have",
            "remove it",
        )
    elif invalid := [name for name in group.profile if not re.match(r"\s*\+?\d", name)]:
        yield error(
            "group-profile",
            model.location,
            f"profile {invalid[0]!r} is not a number",
            "write 0 or more",
        )


def _warmup(model: Model, sample: ModelWarmup) -> Iterator[Finding]:
    tensors = {tensor.name: tensor for tensor in model.completed.input}
    location = f"{model.location}:model_warmup {sample.name}".rstrip()
    for name, tensor_data in sample.inputs.items():
        if -1 in tensor_data.dims:
            yield _fault(
                location, f"{name!r} has open dims {list(tensor_data.dims)}", "write lengths"
            )
            continue
        if tensor_data.WhichOneof("input_data_type") is None:
            yield _fault(
                location, f"{name!r} has no data", "write zero_data: true or random_data: true"
            )
        elif tensor_data.input_data_file:
            fault = file_fault(
                model.folder / WARMUPS / tensor_data.input_data_file,
                tensor_data.data_type,
                tensor_data.dims,
            )
            if fault:
                yield _fault(
                    location,
                    f"{name!r} needs {WARMUPS}/{tensor_data.input_data_file}, which {fault}",
                    "put the bytes there, or write zero_data: true",
                )
        if name in tensors:
            yield from _compare(location, tensors[name], tensor_data)
    missing = [
        name
        for name, tensor in tensors.items()
        if not tensor.optional and name not in sample.inputs
    ]
    if missing:
        yield _fault(location, f"has no data for {', '.join(missing)}", "add it to inputs")


def _compare(location: str, tensor: ModelInput, sample: ModelWarmup.Input) -> Iterator[Finding]:
    dims, expected = list(sample.dims), list(tensor.dims)
    if sample.data_type != tensor.data_type:
        yield _fault(
            location, f"{tensor.name!r} has another data_type than the input", "write the same"
        )
    fits = len(dims) == len(expected) and all(
        size in (-1, dim) for dim, size in zip(dims, expected, strict=True)
    )
    if not fits:
        yield _fault(
            location,
            f"{tensor.name!r} has dims {dims}, but the input has {expected}",
            "write the input's dims, without the batch axis",
        )


def _fault(location: str, message: str, fix: str) -> Finding:
    return error("warmup-bad", location, message, fix)

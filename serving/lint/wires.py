"""An ensemble's wires: does each tensor have one producer, and consumers that fit?

Checked as Triton does: the first end of a wire defines the tensor (the ensemble's own inputs and
outputs come first, then the steps in order), and every other end is compared with it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc.model_config_pb2 import DataType

from serving.lint.finding import Finding, error, one_of
from serving.lint.reading import Model, Models


@dataclass(frozen=True)
class End:
    """A tensor at one end of a wire. ``dims`` exclude the batch axis; ``known`` is false if the
    model does not declare the tensor, ``may_grow`` true if its backend may add a batch axis."""

    owner: str
    produces: bool
    data_type: int = 0
    dims: tuple[int, ...] = ()
    batched: bool = False
    known: bool = True
    may_grow: bool = False

    @property
    def verb(self) -> str:
        return f"{self.owner} {'produces' if self.produces else 'takes'}"

    @property
    def full(self) -> tuple[int, ...]:
        """The dims, with the batch axis, if there is one, in front as -1."""
        return (-1, *self.dims) if self.batched else self.dims

    @property
    def possible(self) -> tuple[tuple[int, ...], ...]:
        """What ``full`` may be once the model is loaded."""
        return (self.full, (-1, *self.dims)) if self.may_grow else (self.full,)


def check(model: Model, models: Models) -> Iterator[Finding]:
    wires = _wires(model, models)
    producers = {name: [e for e in ends if e.produces] for name, ends in wires.items()}
    for name, ends in wires.items():
        location = f"{model.location}:{name}"
        if len(producers[name]) > 1:
            owners = " and ".join(end.owner for end in producers[name])
            yield error("tensor-made-twice", location, f"is produced by {owners}", "rename one")
        if not producers[name]:
            available = [other for other, sources in producers.items() if sources]
            yield error(
                "tensor-unmade",
                location,
                f"{ends[0].owner} needs it, but neither a step nor the caller produces it",
                one_of(available),
            )
        elif len(producers[name]) == len(ends):
            yield _unused(location, producers[name][0])
        known = [end for end in ends if end.known]
        for end in known[1:]:
            yield from _compare(location, known[0], end)


def _unused(location: str, end: End) -> Finding:
    if end.owner == "the caller":
        return error(
            "input-unused",
            location,
            "is an input that no step reads: Triton refuses that",
            "delete it, or map it to a step",
        )
    return error(
        "tensor-unused",
        location,
        f"{end.owner} produces it and nothing reads it: Triton refuses that",
        "remove it from output_map",
    )


def _compare(location: str, one: End, other: End) -> Iterator[Finding]:
    if one.data_type and other.data_type and one.data_type != other.data_type:
        yield error(
            "wire-type",
            location,
            f"{one.verb} {_type(one)}, but {other.verb} {_type(other)}",
            "declare the same data_type at both ends, or add a step between them that casts",
        )
    if not one.dims or not other.dims:
        return  # the backend fills them in
    pairs = ((a, b) for a in one.possible for b in other.possible)
    if not _fits(one.dims, other.dims) and not any(_fits(a, b) for a, b in pairs):
        yield error(
            "wire-shape",
            location,
            f"{one.verb} {list(one.full)}, but {other.verb} {list(other.full)} "
            "(batch axis included)",
            "declare the same dims at both ends; [ 1 ] and [ ] are different shapes",
        )


def _fits(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return len(one) == len(other) and all(
        a == b or -1 in (a, b) for a, b in zip(one, other, strict=True)
    )


def _wires(model: Model, models: Models) -> dict[str, list[End]]:
    """The ends of each of the ensemble's tensors, in the order in which Triton visits them."""
    config = model.config
    ends_by_tensor: dict[str, list[End]] = {}
    for tensors, produces in ((config.input, True), (config.output, False)):
        # Of a tensor that is declared twice, the first declaration counts.
        first = {tensor.name: tensor for tensor in reversed(tensors)}
        for name, tensor in reversed(first.items()):
            shape = tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims
            batched = config.max_batch_size > 0
            end = End("the caller", produces, tensor.data_type, tuple(shape), batched)
            ends_by_tensor.setdefault(name, []).append(end)
    for step in config.ensemble_scheduling.step:
        member = models.get(step.model_name)
        maps: tuple[tuple[Mapping[str, str], bool], ...] = (
            (step.input_map, False),
            (step.output_map, True),
        )
        for wires, produces in maps:
            for name, tensor_name in wires.items():
                end = _end(f"step {step.model_name}", member, name, produces)
                ends_by_tensor.setdefault(tensor_name, []).append(end)
    return ends_by_tensor


def _end(owner: str, member: Model | None, name: str, produces: bool) -> End:
    if member is None:
        return End(owner, produces, known=False)
    config = member.completed
    tensors: Any = config.output if produces else config.input
    tensor = next((candidate for candidate in tensors if candidate.name == name), None)
    batched = config.max_batch_size > 0
    if tensor is None or (not tensor.dims and not member.may_complete):
        return End(owner, produces, known=False)
    may_grow = member.may_complete and not batched
    dims = tuple(tensor.dims)
    return End(owner, produces, tensor.data_type, dims, batched, may_grow=may_grow)


def _type(end: End) -> str:
    known = end.data_type in DataType.values()
    return str(DataType.Name(end.data_type)) if known else str(end.data_type)

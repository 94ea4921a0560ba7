"""An ensemble's wires: does each tensor have one maker, and takers that want what it is?

As Triton looks: the first end of a wire says what the tensor is (the ensemble's own inputs and
outputs come first, then the steps in their order), and each other end is compared with that one.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc.model_config_pb2 import DataType

from serving.lint.finding import Finding, error, one_of
from serving.lint.reading import Model, Repository


@dataclass(frozen=True)
class End:
    """A tensor at one end of a wire. ``dims`` are without the batch axis; ``known`` is false where
    the model does not declare the tensor, ``may_grow`` true where its backend may give it a batch
    axis."""

    where: str
    makes: bool
    data_type: int = 0
    dims: tuple[int, ...] = ()
    batched: bool = False
    known: bool = True
    may_grow: bool = False

    @property
    def verb(self) -> str:
        return f"{self.where} {'makes' if self.makes else 'takes'}"

    @property
    def full(self) -> tuple[int, ...]:
        """The dims with the batch axis, as -1, in front where there is one."""
        return (-1, *self.dims) if self.batched else self.dims

    @property
    def possible(self) -> tuple[tuple[int, ...], ...]:
        """What ``full`` may be once the model is loaded."""
        return (self.full, (-1, *self.dims)) if self.may_grow else (self.full,)


def check(model: Model, repository: Repository) -> Iterator[Finding]:
    wires = _wires(model, repository)
    makers = {name: [e for e in ends if e.makes] for name, ends in wires.items()}
    for name, ends in wires.items():
        place = f"{model.place}:{name}"
        if len(makers[name]) > 1:
            where = " and ".join(end.where for end in makers[name])
            yield error("tensor-made-twice", place, f"is made by {where}", "rename one")
        if not makers[name]:
            there = [other for other, made in makers.items() if made]
            yield error(
                "tensor-unmade",
                place,
                f"{ends[0].where} needs it, and neither a step nor the caller makes it",
                one_of(there),
            )
        elif len(makers[name]) == len(ends):
            yield _unused(place, makers[name][0])
        known = [end for end in ends if end.known]
        for end in known[1:]:
            yield from _compare(place, known[0], end)


def _unused(place: str, end: End) -> Finding:
    if end.where == "the caller":
        return error(
            "input-unused",
            place,
            "is an input that no step reads, and Triton refuses that",
            "delete it, or map it to a step",
        )
    return error(
        "tensor-unused",
        place,
        f"{end.where} makes it and nobody reads it, and Triton refuses that",
        "take it out of output_map",
    )


def _compare(place: str, one: End, other: End) -> Iterator[Finding]:
    if one.data_type and other.data_type and one.data_type != other.data_type:
        yield error(
            "wire-type",
            place,
            f"{one.verb} {_type(one)}, and {other.verb} {_type(other)}",
            "declare the same data_type at both ends, or put a step between that casts",
        )
    if not one.dims or not other.dims:
        return  # its backend writes them
    pairs = ((a, b) for a in one.possible for b in other.possible)
    if not _fits(one.dims, other.dims) and not any(_fits(a, b) for a, b in pairs):
        yield error(
            "wire-shape",
            place,
            f"{one.verb} {list(one.full)}, and {other.verb} {list(other.full)} "
            "(batch axis included)",
            "declare the same dims at both ends; [ 1 ] and [ ] are different shapes",
        )


def _fits(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return len(one) == len(other) and all(
        a == b or -1 in (a, b) for a, b in zip(one, other, strict=True)
    )


def _wires(model: Model, repository: Repository) -> dict[str, list[End]]:
    """The ends of each tensor of the ensemble, in the order in which Triton meets them."""
    config = model.config
    found: dict[str, list[End]] = {}
    for tensors, makes in ((config.input, True), (config.output, False)):
        first = {tensor.name: tensor for tensor in reversed(tensors)}  # one declared twice is that
        for name, tensor in reversed(first.items()):
            shape = tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims
            batched = config.max_batch_size > 0
            end = End("the caller", makes, tensor.data_type, tuple(shape), batched)
            found.setdefault(name, []).append(end)
    for step in config.ensemble_scheduling.step:
        member = repository.get(step.model_name)
        maps: tuple[tuple[Mapping[str, str], bool], ...] = (
            (step.input_map, False),
            (step.output_map, True),
        )
        for wires, makes in maps:
            for name, ours in wires.items():
                end = _end(f"step {step.model_name}", member, name, makes)
                found.setdefault(ours, []).append(end)
    return found


def _end(where: str, member: Model | None, name: str, makes: bool) -> End:
    if member is None:
        return End(where, makes, known=False)
    config = member.completed
    tensors: Any = config.output if makes else config.input
    tensor = next((each for each in tensors if each.name == name), None)
    batched = config.max_batch_size > 0
    if tensor is None or (not tensor.dims and not member.may_complete):
        return End(where, makes, known=False)
    may_grow = member.may_complete and not batched
    dims = tuple(tensor.dims)
    return End(where, makes, tensor.data_type, dims, batched, may_grow=may_grow)


def _type(end: End) -> str:
    known = end.data_type in DataType.values()
    return str(DataType.Name(end.data_type)) if known else str(end.data_type)

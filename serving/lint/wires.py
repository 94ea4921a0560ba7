"""An ensemble's wires: does each tensor have one maker, and takers that want what it is?"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc.model_config_pb2 import DataType

from serving.lint.finding import Finding, error, one_of
from serving.lint.reading import Model, Repository


@dataclass(frozen=True)
class Signature:
    """What a tensor is at one end of a wire; ``dims`` have the batch axis in front, as -1, and are
    None where the model does not declare the tensor."""

    where: str
    data_type: int = 0
    dims: tuple[int, ...] | None = None


def check(model: Model, repository: Repository) -> Iterator[Finding]:
    makers = _ends(model, repository, produced=True)
    takers = _ends(model, repository, produced=False)
    for name, ends in makers.items():
        if len(ends) > 1:
            where = " and ".join(end.where for end in ends)
            yield error(
                "tensor-made-twice", f"{model.place}:{name}", f"is made by {where}", "rename one"
            )
        if name not in takers:
            yield from _unused(model, name, ends[0])
    for name, ends in takers.items():
        if name not in makers:
            yield error(
                "tensor-unmade",
                f"{model.place}:{name}",
                f"{ends[0].where} needs it, and neither a step nor the caller makes it",
                one_of(makers),
            )
            continue
        for end in ends:
            yield from _wire(f"{model.place}:{name}", makers[name][0], end)


def _unused(model: Model, name: str, end: Signature) -> Iterator[Finding]:
    if end.where == "the caller":
        yield error(
            "input-unused",
            f"{model.place}:{name}",
            "is an input that no step reads, and Triton refuses that",
            "delete it, or map it to a step",
        )
    else:
        yield error(
            "tensor-unused",
            f"{model.place}:{name}",
            f"{end.where} makes it and nobody reads it, and Triton refuses that",
            "take it out of output_map",
        )


def _wire(place: str, maker: Signature, taker: Signature) -> Iterator[Finding]:
    known = maker.data_type and taker.data_type
    if known and maker.data_type != taker.data_type:
        yield error(
            "wire-type",
            place,
            f"{maker.where} makes {_type(maker)}, and {taker.where} takes {_type(taker)}",
            "declare the same data_type at both ends, or put a step between that casts",
        )
    if maker.dims is not None and taker.dims is not None and not _fits(maker.dims, taker.dims):
        yield error(
            "wire-shape",
            place,
            f"{maker.where} makes {list(maker.dims)}, and {taker.where} takes {list(taker.dims)} "
            "(batch axis included)",
            "declare the same dims at both ends; [ 1 ] and [ ] are different shapes",
        )


def _fits(made: tuple[int, ...], taken: tuple[int, ...]) -> bool:
    return len(made) == len(taken) and all(
        a == b or -1 in (a, b) for a, b in zip(made, taken, strict=True)
    )


def _ends(model: Model, repository: Repository, produced: bool) -> dict[str, list[Signature]]:
    """Where each tensor of the ensemble begins (``produced``) or ends."""
    config = model.config
    found: dict[str, list[Signature]] = {}
    for tensor in config.input if produced else config.output:
        end = _signature("the caller", config.max_batch_size, tensor)
        found.setdefault(tensor.name, []).append(end)
    for step in config.ensemble_scheduling.step:
        member = repository.get(step.model_name)
        tensors, batch = _declared(member, produced)
        wires: Mapping[str, str] = step.output_map if produced else step.input_map
        for name, ours in wires.items():
            where = f"step {step.model_name}"
            known = tensors.get(name)
            end = _signature(where, batch, known) if known else Signature(where)
            found.setdefault(ours, []).append(end)
    return found


def _declared(member: Model | None, outputs: bool) -> tuple[dict[str, Any], int]:
    if member is None or member.written is None:
        return {}, 0
    tensors = member.config.output if outputs else member.config.input
    return {tensor.name: tensor for tensor in tensors}, member.config.max_batch_size


def _signature(where: str, max_batch_size: int, tensor: Any) -> Signature:
    dims = tuple(tensor.dims)
    return Signature(where, tensor.data_type, (-1, *dims) if max_batch_size else dims)


def _type(end: Signature) -> str:
    return str(DataType.Name(end.data_type))

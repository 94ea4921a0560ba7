"""What an answer cost, as the model itself counted: read out of it where a limit of tokens binds.

A model counts in ``token_count``, or, if it generates text, in the two tensors that its endpoint
schema binds
for OpenAI's routes. A client that did not ask for them is not shown them, but pays all the same.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from gateway.errors import InvalidRequest
from gateway.limits.limiter import Admission
from gateway.models.catalogue import Model
from gateway.models.tensors import Tensor, unpack
from gateway.models.v2_request import CLASSIFICATION

_FLAG = "return_"  # what vLLM's backend calls the inputs that have it say so


class Meter:
    """One request's tokens, told to its admission as its answers come."""

    __slots__ = ("_added", "_admission", "_prompt", "hidden", "model")

    def __init__(self, admission: Admission, model: Model) -> None:
        self._admission, self.model = admission, model
        self._prompt = self._added = 0
        self.hidden: set[str] = set()  # outputs that the client did not ask for

    def ask(self, message: Any, raws: Iterable[Any]) -> list[Tensor]:
        """Have the answers of a ModelInferRequest say what they cost; the inputs that it needs for
        that. InvalidRequest for a request that would have them say something else.
        """
        asked = {output.name: output for output in message.outputs}
        for name in self.model.tokens.names:
            if name in asked and CLASSIFICATION in asked[name].parameters:
                raise InvalidRequest(
                    f"output {name!r} counts tokens: ask for it without classification"
                )
            if asked and name not in asked:
                message.outputs.add(name=name)
                self.hidden.add(name)
        return list(self._flags(message, list(raws)))

    def prepare(self, message: Any) -> None:
        """``ask``, for a request whose inputs are all raw bytes."""
        for tensor in self.ask(message, message.raw_input_contents):
            message.inputs.add(name=tensor.name, datatype=tensor.dtype, shape=tensor.shape)
            message.raw_input_contents.append(bytes(tensor.raw))

    def count(self, name: str, dtype: str, raw: Any) -> None:
        """One output of an answer; those that do not count change nothing."""
        if name not in self.model.tokens:
            return
        tokens = int(unpack(dtype, [-1], raw).sum())
        if name == self.model.tokens.prompt:
            self._prompt = tokens
        else:
            self._added += tokens
        self.settle()

    def settle(self) -> None:
        """What was counted until now, as of now: nothing, if there was no answer."""
        self._admission.settle(self._prompt + self._added)

    def read(self, response: Any) -> None:
        """Count a ModelInferResponse, and take out of it what its client did not ask for."""
        for place in reversed(range(len(response.outputs))):
            output = response.outputs[place]
            self.count(output.name, output.datatype, response.raw_output_contents[place])
            if output.name in self.hidden:
                del response.outputs[place], response.raw_output_contents[place]

    def read_rows(self, answers: Iterable[tuple[Mapping[str, Any], int]]) -> None:
        """Count rows, each the tensors that it is in and its place there."""
        for tensors, index in answers:
            for name in self.model.tokens.names:
                if name in tensors:
                    self._added += int(tensors[name][index].sum())
        self.settle()

    def _flags(self, message: Any, raws: list[Any]) -> Iterable[Tensor]:
        given = {tensor.name: place for place, tensor in enumerate(message.inputs)}
        for name in self.model.tokens.names:
            flag = _FLAG + name
            if flag not in self.model.inputs:
                continue
            if flag not in given:
                self.hidden.add(name)
                yield self._flag(flag, message.inputs[0].shape)
            elif not _is_set(message.inputs[given[flag]], raws[given[flag]] if raws else b""):
                raise InvalidRequest(
                    f"a limit of tokens holds for you: leave {flag!r} out or set it"
                )

    def _flag(self, name: str, like: Any) -> Tensor:
        rows = like[0] if self.model.max_batch_size else 1
        shape = (rows, 1) if self.model.max_batch_size else (1,)
        return Tensor(name, "BOOL", shape, b"\x01" * rows)


def _is_set(flag: Any, raw: Any) -> bool:
    values = bytes(raw) if raw else bytes(flag.contents.bool_contents)
    return bool(values) and all(values)

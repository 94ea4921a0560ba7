"""Token counts, as the model reports them: read from its responses where a token limit applies.

A model counts in ``token_count`` or, if it generates text, in the two tensors that its endpoint
schema binds for OpenAI's routes. A client that did not request them does not receive them, but is
charged all the same.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from gateway.errors import InvalidRequest
from gateway.limits.limiter import Admission
from gateway.models.catalogue import Model
from gateway.models.tensors import Tensor, add_inputs, unpack
from gateway.models.token_outputs import TOKENS
from gateway.models.v2_request import CLASSIFICATION

if TYPE_CHECKING:
    from tritonclient.grpc import service_pb2

_FLAG = "return_"  # prefix of the inputs that make vLLM's backend report an output


class Meter:
    """Counts one request's tokens, and reports them to its admission as the responses arrive."""

    __slots__ = ("_added", "_admission", "_prompt", "hidden", "model")

    def __init__(self, admission: Admission, model: Model) -> None:
        self._admission, self.model = admission, model
        self._prompt = self._added = 0
        self.hidden: set[str] = set()  # outputs that the client did not request

    def ask(self, message: "service_pb2.ModelInferRequest", raws: Iterable[Any]) -> list[Tensor]:
        """Add the outputs that count tokens to a ModelInferRequest, and return the inputs that it
        needs for them. Raises InvalidRequest for a request that would falsify the counts.
        """
        requested = {output.name: output for output in message.outputs}
        for name in self.model.tokens.names:
            if name in requested and CLASSIFICATION in requested[name].parameters:
                raise InvalidRequest(
                    f"output {name!r} counts tokens: ask for it without classification"
                )
            if requested and name not in requested:
                message.outputs.add(name=name)
                self.hidden.add(name)
        return list(self._flags(message, list(raws)))

    def prepare(self, message: "service_pb2.ModelInferRequest") -> None:
        """As ``ask``, for a request whose inputs are all raw bytes: adds the inputs too."""
        add_inputs(message, self.ask(message, message.raw_input_contents))

    def count(self, name: str, dtype: str, raw: Any) -> None:
        """Count one output of a response; outputs that do not count tokens are ignored."""
        if name not in self.model.tokens:
            return
        tokens = int(unpack(dtype, [-1], raw).sum())
        if name == self.model.tokens.prompt:
            self._prompt = tokens
        else:
            self._added += tokens
        self.settle()

    @property
    def input_tokens(self) -> int | None:
        """So far; a model that counts in one output only counts what it reads."""
        tokens = self.model.tokens
        return self._prompt if tokens.prompt or tokens.added != TOKENS else self._added

    @property
    def output_tokens(self) -> int | None:
        return self._added if self.model.tokens.added not in ("", TOKENS) else None

    def settle(self) -> None:
        """Report the count so far: 0 if there was no response."""
        self._admission.settle(self._prompt + self._added)

    def read(self, response: "service_pb2.ModelInferResponse") -> None:
        """Count a ModelInferResponse, and remove the outputs that its client did not request."""
        for index in reversed(range(len(response.outputs))):
            output = response.outputs[index]
            self.count(output.name, output.datatype, response.raw_output_contents[index])
            if output.name in self.hidden:
                del response.outputs[index], response.raw_output_contents[index]

    def read_rows(self, rows: Iterable[tuple[Mapping[str, Any], int]]) -> None:
        """Count rows, each given as the tensors that contain it and its index in them."""
        for tensors, index in rows:
            for name in self.model.tokens.names:
                if name in tensors:
                    self._added += int(tensors[name][index].sum())
        self.settle()

    def _flags(self, message: "service_pb2.ModelInferRequest", raws: list[Any]) -> Iterable[Tensor]:
        indices = {tensor.name: index for index, tensor in enumerate(message.inputs)}
        for name in self.model.tokens.names:
            flag = _FLAG + name
            if flag not in self.model.inputs:
                continue
            if flag not in indices:
                self.hidden.add(name)
                yield self._flag(flag, message.inputs[0].shape)
                continue
            index = indices[flag]
            if not _is_set(message.inputs[index], raws[index] if raws else b""):
                raise InvalidRequest(
                    f"a token limit applies to you: set {flag!r} to true or leave it out"
                )

    def _flag(self, name: str, input_shape: Any) -> Tensor:
        rows = input_shape[0] if self.model.max_batch_size else 1
        shape = (rows, 1) if self.model.max_batch_size else (1,)
        return Tensor(name, "BOOL", shape, b"\x01" * rows)


def _is_set(flag: Any, raw: Any) -> bool:
    values = bytes(raw) if raw else bytes(flag.contents.bool_contents)
    return bool(values) and all(values)

"""A message -> the answers of several pipelines, asked at the same time (a step that runs inside
Triton and asks by Triton's business logic scripting).

Input ``text`` BYTES [n, 1]. Outputs: what each call's answer is copied to, and for each call
``step_name`` BYTES, ``step_ms`` FP32 and ``step_error`` BYTES [n, calls]: its name, the
milliseconds that its answer took, and why there is none, or empty. What a call that failed would
have filled is empty text, 0 and false, unless its ``failed`` says otherwise. A message to which
every call fails is refused with the first one's reason.

Model parameter ``calls``: a JSON list of objects with ``name``, ``pipeline``, ``parameters`` of its
request, ``outputs``: its output tensor -> ours, and ``failed``: our output -> its value if the call
fails. Two calls may fill the same one: the first that
is answered does. Parameters of our own request are handed on to each call.

A text that every pipeline would refuse at once is refused before any is asked: one in about twenty
of such messages ended Triton 2.51 (SIGSEGV in libtriton_python.so, as it took the response of a
pipeline one of whose two classifiers refused while the other ran).
"""

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

try:  # exists only inside Triton's Python stub
    import triton_python_backend_utils as pb_utils
except ImportError:
    pb_utils = None

Tensors = Mapping[str, np.ndarray]
TEXT_LIMIT_BYTES = 65_536
# What stands before a step's message if the gateway may forward it to the client, and after what
# Triton puts before it; the row is the request's.
MARKER = re.compile(r"\[tidegate:(\w+)( row=\d+)?\] ")


class CallFailed(Exception):
    """A pipeline did not answer; ``code`` is Triton's. Its text is without the marker that tells
    the gateway to forward it."""

    def __init__(self, message: str, code: object) -> None:
        marker = MARKER.search(message)
        super().__init__(message[marker.end() :] if marker else message)
        self._kind = marker[1] if marker else ""
        self.code = code

    def of_row(self, row: int) -> str:
        """The message for Triton: that this row was refused."""
        return f"[tidegate:{self._kind} row={row}] {self}" if self._kind else str(self)


class Refused(Exception):
    """Every pipeline failed for one of the messages; its text is for Triton."""

    def __init__(self, row: int, failure: CallFailed) -> None:
        super().__init__(failure.of_row(row))
        self.code = failure.code


@dataclass(frozen=True)
class Call:
    name: str
    pipeline: str
    parameters: Mapping[str, str]
    outputs: Mapping[str, str]
    failed: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Response:
    """One call's answer to one message, or why there is none; ``tensors`` are without a batch axis,
    by our names."""

    ms: float
    tensors: Tensors
    failure: CallFailed | None = None


# The texts BYTES [n, 1] -> the call's output tensors [n, ...]; raises CallFailed.
Ask = Callable[[Call, np.ndarray], Awaitable[Tensors]]


class Calls:
    """Asks every pipeline at once. ``empty`` are our outputs, for one message, where a call fails:
    arrays without a batch axis; axes of any length are 1."""

    def __init__(self, calls: Sequence[Call], empty: Tensors) -> None:
        self._calls = calls
        failed = {name: value for call in calls for name, value in call.failed.items()}
        self._empty = {
            name: np.full_like(array, failed[name]) if name in failed else array
            for name, array in empty.items()
        }

    async def __call__(self, texts: np.ndarray, ask: Ask) -> dict[str, np.ndarray]:
        """Our outputs [n, ...]. Raises Refused if every call failed for one of the messages."""
        responses = await asyncio.gather(
            *(self._responses(call, texts, ask) for call in self._calls)
        )
        rows = [
            self._row(row, [of_call[row] for of_call in responses]) for row in range(len(texts))
        ]
        return {name: _stacked([row[name] for row in rows]) for name in rows[0]}

    async def _responses(self, call: Call, texts: np.ndarray, ask: Ask) -> list[Response]:
        """One for each message. Where they fail together, each is asked for alone: one message that
        is refused is not to cost the others their answers."""
        began = time.perf_counter()
        try:
            tensors = await ask(call, texts)
        except CallFailed as failure:
            if len(texts) == 1:
                return [Response(_ms_since(began), {}, failure)]
            alone = (self._responses(call, texts[row : row + 1], ask) for row in range(len(texts)))
            return [
                response for responses in await asyncio.gather(*alone) for response in responses
            ]
        ms = _ms_since(began)
        return [
            Response(ms, {ours: tensors[theirs][row] for theirs, ours in call.outputs.items()})
            for row in range(len(texts))
        ]

    def _row(self, row: int, responses: Sequence[Response]) -> dict[str, np.ndarray]:
        failures = [response.failure for response in responses if response.failure]
        if len(failures) == len(responses):
            raise Refused(row, failures[0])
        filled = dict(self._empty)
        for response in reversed(responses):  # the first has the last word
            filled.update(response.tensors)
        errors = [str(response.failure or "").encode() for response in responses]
        return {
            **filled,
            "step_name": np.array([call.name.encode() for call in self._calls], dtype=object),
            "step_ms": np.array([response.ms for response in responses], dtype=np.float32),
            "step_error": np.array(errors, dtype=object),
        }


def _ms_since(began: float) -> float:
    return (time.perf_counter() - began) * 1e3


def _stacked(rows: Sequence[np.ndarray]) -> np.ndarray:
    """[n, ...]: shorter rows are filled up with 0, false or empty text."""
    shape = np.max([row.shape for row in rows], axis=0)
    blank = b"" if rows[0].dtype == object else rows[0].dtype.type(0)
    stacked = np.full((len(rows), *shape), blank, dtype=rows[0].dtype)
    for target, row in zip(stacked, rows, strict=True):
        target[tuple(map(slice, row.shape))] = row
    return stacked


def why_refused(texts: np.ndarray) -> str:
    """The message for Triton if one of the texts BYTES [n, 1] is nothing that any text pipeline
    takes, else ""."""
    for row, text in enumerate(texts.reshape(-1)):
        if len(text) > TEXT_LIMIT_BYTES:
            problem = f"has {len(text)} bytes: send at most {TEXT_LIMIT_BYTES}"
        else:
            try:
                problem = (
                    "" if text.decode("utf-8").strip() else "is empty: send at least one character"
                )
            except UnicodeDecodeError:
                problem = "is not UTF-8: encode it as UTF-8"
        if problem:
            return f"[tidegate:invalid_input row={row}] the text {problem}"
    return ""


class TritonPythonModel:
    """Triton's entry point: texts in, every pipeline's answers out."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        declared = json.loads(config["parameters"]["calls"]["string_value"])
        calls = [Call(**fields) for fields in declared]
        filled = {name for call in calls for name in call.outputs.values()}
        empty = {
            output["name"]: np.zeros(
                [max(1, int(dim)) for dim in output["dims"]],
                pb_utils.triton_string_to_numpy(output["data_type"]),
            )
            for output in config["output"]
            if output["name"] in filled
        }
        texts = {name: array.shape for name, array in empty.items() if array.dtype == object}
        empty |= {name: np.full(shape, b"", dtype=object) for name, shape in texts.items()}
        self._calls = Calls(calls, empty)

    async def execute(self, requests: list[Any]) -> list[Any]:
        return list(await asyncio.gather(*map(self._respond, requests)))

    async def _respond(self, request: Any) -> Any:
        texts = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()
        own = json.loads(request.parameters() or "{}")
        if refusal := why_refused(texts):
            invalid = pb_utils.TritonError(refusal, pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=invalid)

        async def ask(call: Call, some: np.ndarray) -> Tensors:
            response = await pb_utils.InferenceRequest(
                model_name=call.pipeline,
                requested_output_names=list(call.outputs),
                inputs=[pb_utils.Tensor("text", some)],
                parameters={**own, **call.parameters},
            ).async_exec()
            if response.has_error():
                error = response.error()
                raise CallFailed(error.message(), error.code())
            return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}

        try:
            outputs = await self._calls(texts, ask)
        except Refused as refused:
            error = pb_utils.TritonError(str(refused), refused.code)
            return pb_utils.InferenceResponse(error=error)
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor(name, np.ascontiguousarray(values))
                for name, values in outputs.items()
            ]
        )

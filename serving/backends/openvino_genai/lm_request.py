"""A request's tensors as a Question, and what the engine makes as response tensors."""

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from lm_jobs import Busy, Cancelled, EngineDied, Load, Question, SentPiece
from lm_sampling import CONTEXT_MARKER, MARKER, PromptTooLong, Refused

# The gateway answers 503 to an error that starts with this: a stream's errors carry no code.
NO_CAPACITY = "[tidegate:no_capacity]"
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
_RETURNS = (
    "finish_reason",
    "cumulative_logprob",
    "logprobs",
    "num_input_tokens",
    "num_output_tokens",
)


class LmRequest:
    """One request, and how it is answered. Raises Refused."""

    def __init__(self, request: Any, sender: Any) -> None:
        self._sender, self._has_answered = sender, False
        self._has_left = False
        tensors = {tensor.name(): tensor.as_numpy().reshape(-1) for tensor in request.inputs()}
        prompt, ids = _text(tensors, "text_input"), _ids(tensors)
        parameters = _text(tensors, "sampling_parameters")
        if "sampling_parameters" not in tensors:
            parameters = request.parameters()
        is_stream = _flag(tensors, "stream", False)
        excludes = _flag(tensors, "exclude_input_in_output", is_stream)
        if is_stream and not excludes:
            raise Refused("exclude_input_in_output cannot be false with stream")
        if "image" in tensors or "embedding_request" in tensors:
            raise Refused("image and embedding_request are not supported by this model's engine")
        self._returns = {name: _flag(tensors, f"return_{name}", False) for name in _RETURNS}
        self.question = Question(
            prompt,
            ids,
            parameters,
            is_stream,
            not excludes,
            self._returns["cumulative_logprob"],
            _text(tensors, "tokenizer_request"),
        )

    def is_cancelled(self) -> bool:
        return self._has_left or bool(self._sender.is_cancelled())

    def leave(self) -> None:
        """The client has left, which another request said."""
        self._has_left = True

    def send(self, prompt_tokens: int, pieces: list[SentPiece], is_last: bool) -> None:
        self._has_answered = True
        outputs = {"text_output": _strings([piece.text for piece in pieces])}
        if self._returns["finish_reason"]:
            outputs["finish_reason"] = _strings([piece.finish_reason or "None" for piece in pieces])
        if self._returns["cumulative_logprob"]:
            sums = [piece.cumulative for piece in pieces]
            outputs["cumulative_logprob"] = np.array(sums, np.float32)
        if self._returns["logprobs"]:
            outputs["logprobs"] = _strings([piece.logprobs for piece in pieces])
        if self._returns["num_input_tokens"]:
            outputs["num_input_tokens"] = np.asarray(prompt_tokens, np.uint32)
        if self._returns["num_output_tokens"]:
            counts = [piece.tokens for piece in pieces]
            outputs["num_output_tokens"] = np.asarray(counts, np.uint32)
        tensors = [pb_utils.Tensor(name, array) for name, array in outputs.items()]
        response = pb_utils.InferenceResponse(tensors)
        self._sender.send(response, FINAL if is_last else 0)

    def fail(self, error: Exception) -> None:
        if isinstance(error, EngineDied) and not self._has_answered:
            error = Busy(str(error))  # nothing is lost, so it is worth another try
        self._sender.send(failure(error), FINAL)


def left_request(request: Any) -> str:
    """The id of the request whose client has left, if that is what this one says; '' otherwise."""
    for tensor in request.inputs():
        if tensor.name() == "cancel_request":
            return _text({"cancel_request": tensor.as_numpy().reshape(-1)}, "cancel_request")
    return ""


class Metrics:
    """How busy the engine is, in Triton's metrics."""

    _GAUGES = {  # noqa: RUF012
        "tidegate_queued": "Requests that wait for a place in the engine",
        "tidegate_running": "Sequences that the engine generates",
        "tidegate_kv_usage": "Share of the KV cache that is in use, 0 to 1",
    }
    _COUNTERS = {  # noqa: RUF012
        "tidegate_cancelled": "Requests that were cancelled, waiting or running",
        "tidegate_generated_tokens": "Tokens that the engine has generated",
        "tidegate_engine_restarts": "Engines that ended or were ended, and started again",
    }

    def __init__(self, model: str, version: str) -> None:
        labels = {"model": model, "version": version}
        self._families: list[Any] = []  # metrics exist as long as their family is referred to
        self._metrics: dict[str, Any] = {}
        self._counted: dict[str, int] = dict.fromkeys(self._COUNTERS, 0)
        gauge, counter = pb_utils.MetricFamily.GAUGE, pb_utils.MetricFamily.COUNTER
        try:
            for names, kind in ((self._GAUGES, gauge), (self._COUNTERS, counter)):
                for name, description in names.items():
                    family = pb_utils.MetricFamily(name=name, description=description, kind=kind)
                    self._families.append(family)
                    self._metrics[name] = family.Metric(labels=labels)
        except pb_utils.TritonModelException as error:  # Triton was started without metrics
            pb_utils.Logger.log_warn(f"model '{model}': no metrics of its engine: {error}")
            self._metrics = {}

    def set(self, load: Load, restarts: int) -> None:
        if not self._metrics:
            return
        self._metrics["tidegate_queued"].set(load.queued)
        self._metrics["tidegate_running"].set(load.running)
        self._metrics["tidegate_kv_usage"].set(load.kv_usage)
        counts = {
            "tidegate_cancelled": load.cancelled,
            "tidegate_generated_tokens": load.generated,
            "tidegate_engine_restarts": restarts,
        }
        for name, count in counts.items():
            # A new engine counts from 0.
            self._metrics[name].increment(count - min(self._counted[name], count))
        self._counted = counts


def _ids(tensors: dict[str, Any]) -> list[int]:
    """The prompt's token ids, if it is sent as such. Raises Refused."""
    if "prompt_token_ids" not in tensors:
        return []
    if "text_input" in tensors:
        raise Refused("text_input and prompt_token_ids exclude each other")
    ids: list[int] = tensors["prompt_token_ids"].tolist()
    if not ids:
        raise Refused("the prompt is empty")
    return ids


def _text(tensors: dict[str, Any], name: str) -> str:
    if name not in tensors:
        return ""
    if len(tensors[name]) != 1:
        raise Refused(f"{name} must hold one element")
    value = tensors[name][0]
    try:
        return value.decode() if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError:
        raise Refused(f"{name} is not UTF-8") from None


def _flag(tensors: dict[str, Any], name: str, default: bool) -> bool:
    return bool(tensors[name][0]) if name in tensors and len(tensors[name]) else default


def _strings(texts: list[str]) -> Any:
    """BYTES of shape [texts]."""
    return np.array([text.encode() for text in texts], dtype=np.object_)


def failure(error: Exception) -> Any:
    codes = pb_utils.TritonError
    if isinstance(error, Refused):
        marker = CONTEXT_MARKER if isinstance(error, PromptTooLong) else MARKER
        words, code = f"{marker} {error}", codes.INVALID_ARG
    elif isinstance(error, Busy):
        words = f"{NO_CAPACITY} retry after {error.retry_after_s} s: {error}"
        code = codes.UNAVAILABLE
    elif isinstance(error, Cancelled):
        words, code = str(error), codes.CANCELLED
    else:
        words, code = str(error), codes.INTERNAL
    return pb_utils.InferenceResponse(output_tensors=[], error=codes(words, code))

"""The fields that chat and completions share. An unsupported field is refused, never ignored."""

from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from gateway.errors import SHOWN, InvalidRequest, quoted
from gateway.models.text_binding import Binding

MAX_STOPS, MAX_STOP_LENGTH = 4, 256
# JSON of one parameter that we do not know; a logit_bias of 1,000 ids has 15,000.
MAX_PARAMETER_BYTES = 64 * 1024
COMMON = frozenset({"model", "stream", "stream_options", "user", "stop"})
MAX_TOKENS = ("max_tokens", "max_completion_tokens")
_RANGES = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0001, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}
# Fields of OpenAI's API that are not supported: the values that change nothing, and what to do.
_LEAVE = "leave it out"
_UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "n": ((1,), "send the request several times"),
    "best_of": ((1,), "send the request several times"),
    "logprobs": ((False,), _LEAVE),
    "top_logprobs": ((), _LEAVE),
    "logit_bias": (({},), _LEAVE),
    "tools": (([],), "describe the tools in a message and read the answer yourself"),
    "tool_choice": (("none", "auto"), _LEAVE),
    "parallel_tool_calls": ((True, False), _LEAVE),
    "functions": (([],), _LEAVE),
    "function_call": (("none", "auto"), _LEAVE),
    "response_format": (({"type": "text"},), "describe the format in a message"),
    "modalities": ((["text"],), "this model returns only text"),
    "audio": ((), "this model returns only text"),
    "prediction": ((), _LEAVE),
    "reasoning_effort": (("none",), _LEAVE),
    "verbosity": ((), _LEAVE),
    "service_tier": (("auto", "default"), _LEAVE),
    "store": ((False,), "nothing is stored here"),
    "metadata": (({},), "nothing is stored here"),
    "web_search_options": ((), _LEAVE),
    "suffix": (("",), _LEAVE),
}


def present(body: Any, required: str) -> dict[str, Any]:
    """The body's fields that are not null; raises InvalidRequest when it is not an object."""
    if not isinstance(body, dict):
        raise InvalidRequest(f"the body must be a JSON object with 'model' and '{required}'")
    return {name: value for name, value in body.items() if value is not None}


def refuse_others(body: Mapping[str, Any], known: Iterable[str], binding: Binding) -> None:
    """Raise InvalidRequest for the first field that neither we nor the model support."""
    supported = COMMON | binding.takes | set(known)
    if "max_tokens" in binding.takes:
        supported |= set(MAX_TOKENS)
    for name in body:
        if name in supported:
            continue
        if name not in _UNSUPPORTED:
            raise InvalidRequest(f"unknown field {quoted(name)} for this model", param=name[:SHOWN])
        neutral_values, remedy = _UNSUPPORTED[name]
        value = body[name]
        is_neutral = any(
            value == neutral and type(value) is type(neutral) for neutral in neutral_values
        )
        if not is_neutral:
            raise InvalidRequest(f"{name!r} is not supported: {remedy}", param=name)


def read(body: Mapping[str, Any], binding: Binding) -> dict[str, Any]:
    """The model's sampling parameters; raises InvalidRequest for a value out of its range."""
    parameters = {
        name: _number(name, body[name])
        for name in sorted(binding.takes & set(body) - {"stop", *MAX_TOKENS})
    }
    if "max_tokens" in binding.takes:
        parameters["max_tokens"] = _max_tokens(body, binding)
    stop = [*_stops(body.get("stop", [])), *binding.stop]
    if stop:
        parameters["stop"] = stop
    return parameters


def flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name, False)
    if type(value) is not bool:
        raise InvalidRequest(f"{name!r} must be true or false", param=name)
    return value


def wants_usage(body: Mapping[str, Any]) -> bool:
    """``stream_options.include_usage``."""
    options = body.get("stream_options", {})
    if isinstance(options, dict):
        options = {name: value for name, value in options.items() if value is not None}
    if not isinstance(options, dict) or set(options) - {"include_usage", "include_obfuscation"}:
        raise InvalidRequest("'stream_options' takes 'include_usage' only", param="stream_options")
    if options and not flag(body, "stream"):
        raise InvalidRequest("'stream_options' is for streams only", param="stream_options")
    if options.get("include_obfuscation"):
        raise InvalidRequest("'include_obfuscation' is not supported", param="stream_options")
    return flag(options, "include_usage")


def _number(name: str, value: Any) -> Any:
    if name in _RANGES:
        low, high = _RANGES[name]
        fits = type(value) in (int, float) and low <= value <= high
        expected = f"a number from {low:g} to {high:g}"
    elif name == "seed":
        fits, expected = type(value) is int and abs(value) < 2**63, "an integer"
    else:
        return _engine_parameter(name, value)
    if not fits:
        raise InvalidRequest(f"{name!r} must be {expected}", param=name)
    return value


def _engine_parameter(name: str, value: Any) -> Any:
    """A parameter that only the model's engine knows. It is passed on as JSON of any type; its size
    is bounded, since it is sent beside the text."""
    if len(orjson.dumps(value)) > MAX_PARAMETER_BYTES:
        raise InvalidRequest(
            f"{name!r} is over {MAX_PARAMETER_BYTES} bytes of JSON: send less", param=name
        )
    return value


def _max_tokens(body: Mapping[str, Any], binding: Binding) -> int:
    limit = binding.max_tokens
    name = MAX_TOKENS[1] if MAX_TOKENS[1] in body else MAX_TOKENS[0]
    value = body.get(name, min(limit, binding.default_max_tokens))
    if type(value) is not int or not 1 <= value <= limit:
        raise InvalidRequest(f"{name!r} must be 1 to {limit} for this model", param=name)
    return value


def _stops(value: Any) -> list[str]:
    stops = [value] if isinstance(value, str) else value
    fits = isinstance(stops, list) and len(stops) <= MAX_STOPS
    if not fits or not all(isinstance(s, str) and 0 < len(s) <= MAX_STOP_LENGTH for s in stops):
        raise InvalidRequest(
            f"'stop' must be 1 to {MAX_STOPS} texts of 1 to {MAX_STOP_LENGTH} characters each",
            param="stop",
        )
    return list(stops)

"""The fields that chat and completions share. An unsupported field is refused, never ignored."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import orjson

from gateway.api.openai.fields import flag
from gateway.api.openai.structured_output import response_grammar
from gateway.errors import SHOWN, InvalidRequest, quoted
from gateway.models.text_binding import STRUCTURED_OUTPUTS, Binding

MAX_STOPS, MAX_STOP_LENGTH = 4, 256
# JSON of one parameter that we do not know; a logit_bias of 1,000 ids has 15,000.
MAX_PARAMETER_BYTES = 64 * 1024
# Accepted by every route; they change nothing here.
HARMLESS = ("user", "metadata", "safety_identifier", "prompt_cache_key")
MAX_METADATA, MAX_METADATA_KEY, MAX_METADATA_VALUE = 16, 64, 512  # OpenAI's own limits
COMMON = frozenset(("model", "stream", "stream_options", "stop", "n", "response_format", *HARMLESS))
MAX_TOKENS = ("max_tokens", "max_completion_tokens")
MAX_TOP = {"chat": 20, "completions": 5}  # log-probabilities per token
_RANGES = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0001, 1.0),
    "min_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "repetition_penalty": (0.0001, 2.0),
}
_INTEGERS = {  # the least and the greatest value
    "seed": (-(2**63) + 1, 2**63 - 1),
    "top_k": (-1, 2**31 - 1),
    "min_tokens": (0, 2**31 - 1),
    "truncate_prompt_tokens": (-1, 2**31 - 1),
}
_FLAGS = frozenset(("ignore_eos",))
MAX_BIAS, MAX_BIASES = 100.0, 1024
# Fields of OpenAI's API that are not supported: the values that change nothing, and what to do.
Unsupported = Mapping[str, tuple[tuple[Any, ...], str]]
_LEAVE = "leave it out"
_UNSUPPORTED: Unsupported = {
    "logit_bias": (({},), _LEAVE),
    "functions": (([],), "send 'tools'"),
    "function_call": (("none", "auto"), "send 'tool_choice'"),
    "tools": (([],), "use chat completions"),
    "tool_choice": (("none", "auto"), "use chat completions"),
    "modalities": ((["text"],), "this model returns only text"),
    "audio": ((), "this model returns only text"),
    "prediction": ((), _LEAVE),
    "reasoning_effort": (("none",), _LEAVE),
    "verbosity": ((), _LEAVE),
    "service_tier": (("auto", "default"), _LEAVE),
    "store": ((False,), "nothing is stored here"),
    "web_search_options": ((), _LEAVE),
    "suffix": (("",), _LEAVE),
    "moderation": ((), _LEAVE),
    "prompt_cache_options": (({},), _LEAVE),
    "prompt_cache_retention": ((), _LEAVE),
    "best_of": ((), "leave it out, or set it to the value of 'n'"),
}


def refuse_others(body: Mapping[str, Any], known: Iterable[str], binding: Binding) -> None:
    """Raise InvalidRequest for the first field of a chat or completion that neither we nor the
    model support."""
    supported = COMMON | (binding.takes - {STRUCTURED_OUTPUTS}) | set(known)
    if "max_tokens" in binding.takes:
        supported |= set(MAX_TOKENS)
    refuse_unsupported(body, supported, _UNSUPPORTED)


def refuse_unsupported(
    body: Mapping[str, Any], supported: Collection[str], unsupported: Unsupported
) -> None:
    """Raise InvalidRequest for the first field that is not supported and would change something,
    and for one that changes nothing and is not what OpenAI defines."""
    for name in body:
        if name in supported:
            if name in HARMLESS:
                _check_harmless(name, body[name])
            continue
        if name not in unsupported:
            raise InvalidRequest(f"unknown field {quoted(name)} for this model", param=name[:SHOWN])
        neutral_values, remedy = unsupported[name]
        value = _without_nulls(body[name])
        is_neutral = any(
            value == neutral and type(value) is type(neutral) for neutral in neutral_values
        )
        if not is_neutral:
            raise InvalidRequest(f"{name!r} is not supported: {remedy}", param=name)


def _check_harmless(name: str, value: Any) -> None:
    fits, expected = isinstance(value, str), "a string"
    if name == "metadata":
        fits = isinstance(value, dict) and len(value) <= MAX_METADATA
        fits = fits and all(
            len(key) <= MAX_METADATA_KEY
            and isinstance(text, str)
            and len(text) <= MAX_METADATA_VALUE
            for key, text in value.items()
        )
        expected = (
            f"at most {MAX_METADATA} strings of {MAX_METADATA_VALUE} characters, by names of "
            f"{MAX_METADATA_KEY}"
        )
    if not fits:
        raise InvalidRequest(f"{name!r} must be {expected}", param=name)


def _without_nulls(value: Any) -> Any:
    """The value of a field; a null within it means the same as one that was left out."""
    if not isinstance(value, dict):
        return value
    return {key: item for key, item in value.items() if item is not None}


def read(
    body: Mapping[str, Any], binding: Binding, max_tokens: Sequence[str] = MAX_TOKENS
) -> dict[str, Any]:
    """The model's sampling parameters; ``max_tokens`` names the fields that may bound the length,
    of which the last counts. Raises InvalidRequest for a value out of its range."""
    parameters = {
        name: _number(name, body[name])
        for name in sorted(binding.takes & set(body) - {"stop", STRUCTURED_OUTPUTS, *MAX_TOKENS})
    }
    if "max_tokens" in binding.takes:
        parameters["max_tokens"] = _max_tokens(body, binding, max_tokens)
        if parameters.get("min_tokens", 0) > parameters["max_tokens"]:
            raise InvalidRequest("'min_tokens' is above 'max_tokens'", param="min_tokens")
    stop = [*_stops(body.get("stop", [])), *binding.stop]
    if stop:
        parameters["stop"] = stop
    return parameters


def choices_of(body: Mapping[str, Any], prompts: int, binding: Binding) -> int:
    """``n``, the texts for each of the prompts."""
    n = body.get("n", 1)
    most = binding.max_choices // prompts
    if type(n) is not int or n < 1:
        raise InvalidRequest("'n' must be an integer above 0", param="n")
    if n > most:
        raise InvalidRequest(
            f"a request to this model may have {binding.max_choices} texts, prompts times 'n': "
            "send several requests",
            param="n" if n > 1 else "prompt",
        )
    if "best_of" in body and (type(body["best_of"]) is not int or body["best_of"] != n):
        raise InvalidRequest(
            f"'best_of' is not supported: {_UNSUPPORTED['best_of'][1]}", param="best_of"
        )
    return n


def refuse_top_logprobs(body: Mapping[str, Any], needed: str) -> None:
    """For a request without log-probabilities; 0 asks for nothing."""
    value = body.get("top_logprobs", 0)
    if type(value) is not int or value:
        raise InvalidRequest(f"'top_logprobs' needs {needed}", param="top_logprobs")


def top_logprobs_of(route: str, field: str, value: Any, binding: Binding) -> int:
    """How many log-probabilities per token the request asks for in ``field``."""
    if not binding.logprobs:
        raise InvalidRequest(f"{field!r} is not supported by this model: leave it out", param=field)
    most = min(MAX_TOP[route], binding.max_logprobs)
    if type(value) is not int or not 0 <= value <= most:
        expected = f"an integer from 0 to {most} for this model"
        if most == 0:
            expected = "0 for this model: it says only how likely the token was that it chose"
        raise InvalidRequest(f"{field!r} must be {expected}", param=field)
    return value


def grammar_of(body: Mapping[str, Any], binding: Binding) -> dict[str, Any] | None:
    """``structured_outputs`` for the request's ``response_format``."""
    if "response_format" not in body:
        return None
    grammar = response_grammar(body["response_format"], binding)
    return kept(grammar, "response_format", binding)


def kept(grammar: dict[str, Any] | None, field: str, binding: Binding) -> dict[str, Any] | None:
    """The grammar that ``field`` asks for; raises InvalidRequest if the model keeps none."""
    if grammar and STRUCTURED_OUTPUTS not in binding.takes:
        raise InvalidRequest(
            f"{field!r} is not supported by this model: describe the format in a message",
            param=field,
        )
    return grammar


def wants_usage(body: Mapping[str, Any]) -> bool:
    """``stream_options.include_usage``."""
    options = body.get("stream_options", {})
    if isinstance(options, dict):
        options = {name: value for name, value in options.items() if value is not None}
    if not isinstance(options, dict) or set(options) - {"include_usage", "include_obfuscation"}:
        raise InvalidRequest("'stream_options' takes 'include_usage' only", param="stream_options")
    if options and not flag(body, "stream"):
        raise InvalidRequest("'stream_options' is for streams only", param="stream_options")
    if flag(options, "include_obfuscation"):
        raise InvalidRequest("'include_obfuscation' is not supported", param="stream_options")
    return flag(options, "include_usage")


def seed_of_copy(seed: int, copy: int) -> int:
    """The seed of a further text for the same prompt; after the greatest comes the least."""
    least, greatest = _INTEGERS["seed"]
    return least + (seed - least + copy) % (greatest - least + 1)


def _number(name: str, value: Any) -> Any:
    if name in _RANGES:
        low, high = _RANGES[name]
        fits = type(value) in (int, float) and low <= value <= high
        expected = f"a number from {low:g} to {high:g}"
    elif name in _INTEGERS:
        least, greatest = _INTEGERS[name]
        fits = type(value) is int and least <= value <= greatest
        expected = f"an integer from {least} to {greatest}"
    elif name in _FLAGS:
        fits, expected = type(value) is bool, "true or false"
    elif name == "logit_bias":
        fits = isinstance(value, dict) and len(value) <= MAX_BIASES
        fits = fits and all(
            key.isdecimal() and type(bias) in (int, float) and abs(bias) <= MAX_BIAS
            for key, bias in value.items()
        )
        expected = f"at most {MAX_BIASES} token ids, each with a number from -100 to 100"
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


def _max_tokens(body: Mapping[str, Any], binding: Binding, names: Sequence[str]) -> int:
    limit = binding.max_tokens
    name = next((name for name in reversed(names) if name in body), names[0])
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

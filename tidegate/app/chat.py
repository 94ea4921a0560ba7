"""A conversation with a chat model behind the gateway, over OpenAI's API."""

import json
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from serving.errors import ServingError
from tidegate.app.claim import ready_in, running_in
from tidegate.app.client import TIMEOUT_S, GatewayClient
from tidegate.app.paths import Paths

# A model's text must not move the cursor or recolour the terminal.
_CONTROL = dict.fromkeys({*range(0x20), *range(0x7F, 0xA0)} - {ord("\n"), ord("\t")})
DEFAULT_URL = "http://127.0.0.1:8080"
_ROUTE, _DONE = "/v1/chat/completions", "[DONE]"
_USUAL = "chat"


class NoChatModel(ServingError):
    """The gateway serves no chat model."""


@dataclass(frozen=True)
class ChatOptions:
    """What a user asks for: the model ('' is the only one, or the one named chat), and the bounds
    of each answer. None leaves the bound to the model."""

    model: str = ""
    system: str = ""
    max_tokens: int | None = None
    temperature: float | None = None


@dataclass
class Conversation:
    """``messages`` as OpenAI has them. ``finish_reason`` and ``usage`` are those of the last
    answer."""

    http: httpx.Client
    model: str
    options: ChatOptions
    messages: list[dict[str, str]] = field(default_factory=list)
    finish_reason: str = ""
    usage: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, paths: Paths, url: str | None, options: ChatOptions) -> "Conversation":
        """At ``url``, by default the gateway of the stack that runs in this home. Raises
        ServingError where none answers, StillStarting before it is ready, and NoChatModel where it
        serves none."""
        running = running_in(paths.state) if url else ready_in(paths.state)
        gateway = GatewayClient.at(url or (running.url if running else DEFAULT_URL))
        authority = running.certificate_file if running else ""
        http = httpx.Client(
            base_url=gateway.url,
            headers={"Authorization": f"Bearer {gateway.key}"},
            timeout=TIMEOUT_S,
            verify=ssl.create_default_context(cafile=authority or None),
            trust_env=False,  # the key is for the gateway, not for a proxy of the environment
        )
        try:
            conversation = cls(http, _chat_model(http, options.model), options)
        except BaseException:
            http.close()
            raise
        conversation.begin()
        return conversation

    def begin(self) -> None:
        """Forget what was said."""
        system = {"role": "system", "content": self.options.system}
        self.messages = [system] if self.options.system else []

    def ask(self, text: str) -> Iterator[str]:
        """The pieces of the answer as they arrive. Raises ServingError with the gateway's reason;
        the question is then not part of the conversation."""
        asked = [*self.messages, {"role": "user", "content": text}]
        self.finish_reason, self.usage = "", {}
        pieces = []
        for event in _events(self.http, self._body(asked)):
            for choice in event.get("choices", ()):
                piece = choice.get("delta", {}).get("content") or ""
                self.finish_reason = choice.get("finish_reason") or self.finish_reason
                if piece:
                    pieces.append(piece)
                    yield piece
            self.usage = event.get("usage") or self.usage
        if not self.finish_reason:
            raise ServingError("the stream ended before the answer did: ask again")
        self.messages = [*asked, {"role": "assistant", "content": "".join(pieces)}]

    def close(self) -> None:
        self.http.close()

    def _body(self, messages: list[dict[str, str]]) -> dict[str, Any]:
        bounds = {
            "max_tokens": self.options.max_tokens,
            "temperature": self.options.temperature,
        }
        return {
            "model": self.model,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            **{name: value for name, value in bounds.items() if value is not None},
        }


def printable(text: str) -> str:
    """A model's text without control characters, except for line breaks and tabs."""
    return text.translate(_CONTROL)


def _events(http: httpx.Client, body: dict[str, object]) -> Iterator[dict[str, Any]]:
    try:
        with http.stream("POST", _ROUTE, json=body) as response:
            _require_success(response)
            for line in response.iter_lines():
                data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
                if data == _DONE:
                    return
                if data:
                    event: dict[str, object] = json.loads(data)
                    if "error" in event:
                        raise ServingError(f"the gateway gave up: {_reason(event)}")
                    yield event
    except httpx.TransportError as error:
        raise _unreachable(http, error) from error


def _chat_model(http: httpx.Client, requested: str) -> str:
    """The requested one; for '' the only chat model, or the one named ``chat``. NoChatModel if
    there is none, ServingError if there are several, or others than the requested one."""
    try:
        response = http.get("/openapi.json")
        _require_success(response)
    except httpx.TransportError as error:
        raise _unreachable(http, error) from error
    route = response.json()["paths"].get(_ROUTE)
    if route is None:
        raise NoChatModel(
            f"{http.base_url} serves no chat model: `tidegate up chat` serves the built-in one; "
            "docs/chat.md says how to convert another"
        )
    body = route["post"]["requestBody"]["content"]["application/json"]["schema"]
    names: list[str] = body["properties"]["model"]["enum"]
    if requested in names:
        return requested
    if requested:
        raise ServingError(
            f"there is no chat model {requested!r} at {http.base_url}: served are "
            f"{', '.join(names)}"
        )
    if len(names) > 1 and _USUAL not in names:
        raise ServingError(
            f"several chat models are served: pass --model, one of {', '.join(names)}"
        )
    return _USUAL if _USUAL in names else names[0]


def _require_success(response: httpx.Response) -> None:
    if response.is_success:
        return
    response.read()
    try:
        reason = _reason(response.json())
    except ValueError:
        reason = response.reason_phrase
    raise ServingError(f"the gateway refused ({response.status_code}): {reason}")


def _reason(problem: object) -> str:
    """The message of an error in OpenAI's form, or of a problem document."""
    error = problem.get("error", problem) if isinstance(problem, dict) else {}
    error = error if isinstance(error, dict) else {"message": error}
    return str(error.get("message") or error.get("detail") or problem)


def _unreachable(http: httpx.Client, error: httpx.TransportError) -> ServingError:
    reason = str(error) or type(error).__name__
    return ServingError(
        f"no gateway answers at {http.base_url}: start it with `make up` ({reason})"
    )

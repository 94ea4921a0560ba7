"""A whole HTTP answer, sent as plain ASGI."""

from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson
from starlette.types import Send

# numpy arrays are written straight to JSON; a float32 prints in its own shortest form.
_JSON_OPTIONS = orjson.OPT_SERIALIZE_NUMPY


class Sendable(Protocol):
    """What a door's handler gives: a ``Reply``, or one in pieces (``EventStream``)."""

    async def send(self, send: Send) -> None: ...


@dataclass(slots=True)
class Reply:
    status: int
    body: bytes
    content_type: bytes = b"application/json"
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)

    async def send(self, send: Send) -> None:
        headers = [
            (b"content-type", self.content_type),
            (b"content-length", str(len(self.body)).encode()),
            *self.headers,
        ]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


def json_reply(value: Any, status: int = 200) -> Reply:
    return Reply(status, orjson.dumps(value, option=_JSON_OPTIONS))

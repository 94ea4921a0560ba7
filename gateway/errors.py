"""One taxonomy of what can go wrong, whatever the API.

GatewayError                 a stable code, a message that says what to do, sometimes Retry-After
|- Unauthenticated           no identity, or an invalid one
|- Forbidden                 known, but not allowed
|- NotFound                  unknown, or not yours
|  `- UnknownModel           the model is
|- MethodNotAllowed          the path exists, but not for this method
|- InvalidRequest            the request does not fit the schema
|  `- PromptTooLong          its prompt does not fit into the model's context
|- TooLarge                  the body is over the limit
|- RequestTimeout            the body did not arrive in time
|- QuotaExceeded             the caller's own limit
|- NoCapacity                no server can take the request now
|- DeadlineExceeded          the response did not arrive in time
|- UpstreamError             a model or its server failed
`- Internal                  our own bug

Nothing here knows HTTP: ``gateway.render`` has the status table, one column per API.
"""

from collections.abc import Sequence
from typing import Any


class GatewayError(Exception):
    """``code`` is stable: clients may branch on it. ``message`` is for people."""

    code = "internal"

    def __init__(self, message: str, *, retry_after_s: int | None = None, param: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s
        self.param = param  # the field of the request that is wrong, if it is one field


class Unauthenticated(GatewayError):
    code = "unauthenticated"


class Forbidden(GatewayError):
    code = "forbidden"


class NotFound(GatewayError):
    code = "not_found"


class UnknownModel(NotFound):
    """``name`` is that of the model, as a message quotes it."""

    def __init__(
        self, message: str, name: str = "", *, retry_after_s: int | None = None, param: str = ""
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s, param=param)
        self.name = name


class MethodNotAllowed(GatewayError):
    """``allowed`` lists the methods that the path supports."""

    code = "method_not_allowed"

    def __init__(
        self,
        message: str,
        allowed: Sequence[str] = (),
        *,
        retry_after_s: int | None = None,
        param: str = "",
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s, param=param)
        self.allowed = allowed


class InvalidRequest(GatewayError):
    """``row`` is the index of the faulty row of a batch, if it is one row; ``problem`` is the
    message without the row."""

    code = "invalid_request"

    def __init__(self, message: str, *, row: int | None = None, **more: Any) -> None:
        super().__init__(message if row is None else f"row {row}: {message}", **more)
        self.problem, self.row = message, row

    def at_row(self, row: int) -> "InvalidRequest":
        """The same error, for this row."""
        return type(self)(self.problem, param=self.param, row=row)

    def at(self, where: str) -> "InvalidRequest":
        """The same error, located by the row's path in the body, such as ``inputs.3``; '' for a row
        that is the whole body."""
        message = f"{where}: {self.problem}" if where else self.problem
        return type(self)(message, param=".".join(filter(None, (where, self.param))))


class PromptTooLong(InvalidRequest):
    """The prompt has more tokens than a language model's context holds."""


class TooLarge(GatewayError):
    code = "too_large"


class RequestTimeout(GatewayError):
    code = "request_timeout"


class QuotaExceeded(GatewayError):
    code = "quota_exceeded"


class NoCapacity(GatewayError):
    code = "no_capacity"


class ReplicaLost(NoCapacity):
    """A replica did not take a request, or was lost while it worked on it: ``was_sent``."""

    was_sent = False


class DeadlineExceeded(GatewayError):
    code = "deadline_exceeded"


class UpstreamError(GatewayError):
    code = "upstream_error"


class Internal(GatewayError):
    """Our own bug: the default code of GatewayError."""


SHOWN = 64  # characters of a client's value that a message quotes


def quoted(value: object) -> str:
    """A client's value for use in a message: no more than its beginning."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    if isinstance(value, str):
        return repr(value if len(value) <= SHOWN else f"{value[: SHOWN - 3]}...")
    return repr(value)[:SHOWN]


def no_model(name: str) -> UnknownModel:
    """The error for a model that does not exist and for one that the caller may not use: the two
    must not be distinguishable.

    Triton's own wording comes first, since clients (NVIDIA's examples among them) look for it.
    """
    shown = quoted(name)
    return UnknownModel(
        f"Request for unknown model: {shown} is not found: see GET /v2/models for yours", shown
    )

"""Triton's errors: what each means to our client, and Triton's own words in the log."""

import logging
import re
import time
from collections.abc import Awaitable
from contextvars import ContextVar
from typing import Any

import grpc

from gateway.errors import (
    DeadlineExceeded,
    GatewayError,
    InvalidRequest,
    NoCapacity,
    PromptTooLong,
    ReplicaLost,
    TooLarge,
    UpstreamError,
)
from gateway.models.sequences import not_begun

# A step's error that is meant for the client starts with this, and may name the faulty row of its
# batch, or say that the prompt does not fit into the model's context; any other text of Triton's
# may name paths or shared-memory regions and is not passed on.
FOR_CLIENT = re.compile(r"\[tidegate:invalid_input(?: row=(\d{1,9})|( context_length))?\] ")
# vLLM says so in its own words, and means no more by it.
_VLLM_CONTEXT = re.compile(r"maximum (?:context|model) length (?:is|of) (\d{1,9})")
# In a model's error that says it is full: errors in a stream carry no status. It may say how many
# seconds later another try is worth it.
NO_CAPACITY = "[tidegate:no_capacity]"
_RETRY_AFTER = re.compile(re.escape(NO_CAPACITY) + r" retry after (\d{1,4}) s\b")
# In the error for a request that continues a sequence unknown to Triton, whatever the status.
NOT_BEGUN = "must specify the START flag"
# gRPC's words for a connection that was never made (our HTTP client leaves that to gRPC). The text
# begins with them: a model's own error may speak of a connection that *it* could not make.
NOT_CONNECTED = "failed to connect to all addresses"
# Triton's words for a model that it does not have; a model's own NOT_FOUND is about something else.
_NO_MODEL = re.compile("(?i)(request for )?unknown model")
log = logging.getLogger("gateway")
# The request that this task works on; '' in the background, where failures are not logged.
request_id: ContextVar[str] = ContextVar("request_id", default="")
WORDS = 2000  # characters of an error that are logged
# Statuses that a request alone can cause: they are logged at level INFO, not WARNING.
_CAUSED_BY_CLIENTS = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
)


def to_gateway_error(error: Exception) -> GatewayError:
    if isinstance(error, grpc.aio.AioRpcError):
        return translate(error.code(), error.details() or "")
    return translate(grpc.StatusCode.DEADLINE_EXCEEDED, "no response before the deadline")


async def translated(call: Awaitable[Any]) -> Any:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise to_gateway_error(error) from error


class UpstreamLog:
    """Logs Triton's own messages about failed requests, each with its request id.

    A client that provokes errors can neither forge lines nor fill the disk: unprintable characters
    are escaped, texts are truncated, and each level may log ``BURST`` lines at once and ``RATE``
    more per second. The next line of a level is preceded by the number of lines left out.
    """

    BURST, RATE = 200.0, 20.0

    def __init__(self) -> None:
        self._budget = {logging.INFO: self.BURST, logging.WARNING: self.BURST}
        self._updated = dict.fromkeys(self._budget, 0.0)  # monotonic seconds
        self._dropped = dict.fromkeys(self._budget, 0)

    def note(self, level: int, identifier: str, status: grpc.StatusCode, details: str) -> None:
        """``level`` is INFO or WARNING."""
        now = time.monotonic()
        gained = (now - self._updated[level]) * self.RATE
        self._budget[level] = min(self.BURST, self._budget[level] + gained)
        self._updated[level] = now
        if self._budget[level] < 1:
            self._dropped[level] += 1
            return
        self._budget[level] -= 1
        if self._dropped[level]:
            log.log(level, "upstream errors: %d more were not logged", self._dropped[level])
            self._dropped[level] = 0
        words = repr(details[:WORDS])[: WORDS + 48]
        log.log(level, "%s upstream %s: %s", identifier, status.name, words)


_upstream_log = UpstreamLog()


def log_upstream(status: grpc.StatusCode, details: str, whose: str = "") -> None:
    """Log Triton's message about this task's request. ``translate`` does so for its argument."""
    identifier = request_id.get()
    if identifier:
        caused = (
            status in _CAUSED_BY_CLIENTS
            or FOR_CLIENT.search(details) is not None
            or _VLLM_CONTEXT.search(details) is not None
            or NO_CAPACITY in details
        )
        level = logging.INFO if caused else logging.WARNING
        _upstream_log.note(level, identifier, status, whose + details)


def translate(status: grpc.StatusCode, details: str = "", whose: str = "") -> GatewayError:
    """What a gRPC status of Triton's means to our client. Triton's own message only goes into the
    log, after ``whose``: the part of this task's request that it is about."""
    log_upstream(status, details, whose)
    match = FOR_CLIENT.search(details)
    if match:
        text = details[match.end() :].strip()
        kind = PromptTooLong if match[2] else InvalidRequest
        return kind(text, row=int(match[1]) if match[1] else None)
    if context := _VLLM_CONTEXT.search(details):
        return PromptTooLong(
            f"the prompt is longer than the model's context of {context[1]} tokens"
        )
    if NO_CAPACITY in details:
        retry = _RETRY_AFTER.search(details)
        retry_after_s = int(retry[1]) if retry else 1
        return NoCapacity("the model is full: try again shortly", retry_after_s=retry_after_s)
    if NOT_BEGUN in details:
        return not_begun()
    if status is grpc.StatusCode.INVALID_ARGUMENT:
        return InvalidRequest(
            "the model does not take this input: compare it with the model's metadata"
        )
    if status is grpc.StatusCode.NOT_FOUND and _NO_MODEL.match(details):
        # The catalogue had it a moment ago: it is being reloaded, or was just removed.
        return ReplicaLost("the model is not being served now: try again shortly", retry_after_s=1)
    if status is grpc.StatusCode.UNAVAILABLE:
        lost = ReplicaLost("no server can take this now: try again shortly", retry_after_s=1)
        lost.was_sent = not details.startswith(NOT_CONNECTED)
        return lost
    if status is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return TooLarge("the tensors are larger than the server accepts: send fewer rows")
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded("the model did not answer in time: send less, or try again later")
    return UpstreamError(
        "the model failed on this request: report the request id to your administrator"
    )

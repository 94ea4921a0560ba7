"""The tokens of one ModelStreamInfer: a message's reservation is held until it was answered.

Answers do not say which message they are for. They need not: one caller's messages to one model
draw on the same buckets, so what an answer cost is settled with the oldest that is still open. The
sum is right, and each is closed at one answer (of a decoupled model: at a final one).
"""

from collections import deque
from typing import NamedTuple

from gateway.addons.grpc_door.answer import (
    ANSWER_TAG,
    AnswerParts,
    ask_for_tokens,
    streamed,
    within,
)
from gateway.addons.grpc_door.wire import Parts
from gateway.addons.metering import Meter
from gateway.errors import GatewayError
from gateway.guard import Guard
from gateway.limits.limiter import Admission
from gateway.models.catalogue import Model
from gateway.stream_call import EMPTY_FINAL, FINAL


class _Open(NamedTuple):
    """A message without its last answer; ``admission`` None: it is held to the stream's end."""

    meter: Meter
    admission: Admission | None


class StreamTokens:
    """Does nothing where no limit of tokens binds."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._open: dict[str, deque[_Open]] = {}  # by the name that Triton is told
        self._wants_final = False

    async def follow(
        self, parts: Parts, model: Model, admission: Admission | None, *, held: bool
    ) -> None:
        """Settle the message's ``admission`` when it is answered, and leave it unless it is
        ``held`` for longer. Malformed as ``Meter.ask``: it cost nothing then."""
        own = None if held else admission
        meter = self._guard.meter(admission, model)
        if meter is None or admission is None:
            await _leave(own)
            return
        try:
            ask_for_tokens(parts, meter)
        except GatewayError:
            admission.settle(0)
            await _leave(own)
            raise
        if model.decoupled:
            asked = parts.header.parameters[EMPTY_FINAL]
            self._wants_final = self._wants_final or asked.bool_param
            asked.bool_param = True
        self._open.setdefault(parts.header.model_name, deque()).append(_Open(meter, own))

    async def read(self, answer: bytes) -> bytes | None:
        """The answer for the client; None for one that says only that it is the last, unasked."""
        if not self._open:
            return answer
        if not answer.startswith(ANSWER_TAG):
            await self._failed()
            return answer
        found = AnswerParts(within(answer))
        header, queue = found.header, self._open.get(found.header.model_name)
        if not queue:
            return answer
        meter = queue[0].meter
        found.read(meter)
        last = FINAL in header.parameters and header.parameters[FINAL].bool_param
        if last or not meter.model.decoupled:
            await self._close_oldest(header.model_name)
        if last and meter.model.decoupled and not found.raws and not self._wants_final:
            return None
        return streamed(found.message()) if meter.hidden else answer

    async def close(self) -> None:
        """At the stream's end: what was not answered costs what was settled, or reserved."""
        for queue in self._open.values():
            for each in queue:
                await _leave(each.admission)
        self._open.clear()

    async def _failed(self) -> None:
        """A message ended in an error; of which model, nobody can tell if there are several."""
        if len(self._open) == 1:
            ((name, queue),) = self._open.items()
            queue[0].meter.settle()
            await self._close_oldest(name)

    async def _close_oldest(self, name: str) -> None:
        queue = self._open[name]
        oldest = queue.popleft()
        if not queue:
            del self._open[name]
        await _leave(oldest.admission)


async def _leave(admission: Admission | None) -> None:
    if admission:
        await admission.__aexit__(None, None, None)

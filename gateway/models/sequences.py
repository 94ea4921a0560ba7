"""Sequences: their ids, and which of them are open.

The client's id is mapped to ours, so that no tenant can reach into another's sequence. Ours is a
keyed hash of whose it is. So every worker and every replica of the gateway gives the same one,
nothing is kept that could grow or would have to expire, and nobody without the pepper can tell
which id another tenant's sequence has. That two sequences under way meet has a chance of
about n**2 / 2**64: for a million at once, 5 in 100 million.
"""

import hashlib
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from gateway.errors import GatewayError, InvalidRequest, NoCapacity, QuotaExceeded

SEQUENCE_ID = "sequence_id"
LOST = "lost"  # no server has this address
STARTS, ENDS = "sequence_start", "sequence_end"


class SequenceIds:
    """Without a pepper the secret is this process's own: sequences then stay with one worker."""

    def __init__(self, pepper_file: Path) -> None:
        pepper = pepper_file.read_bytes() if pepper_file.exists() else b""
        secret = pepper or secrets.token_bytes(32)
        self._keyed = hashlib.blake2b(key=secret[:64], digest_size=8, person=b"tg-sequence")

    def put_own(self, request: Any, tenant: str) -> None:
        """Put our sequence id in the place of the client's, in a ModelInferRequest; InvalidRequest
        if it is not an id."""
        if SEQUENCE_ID not in request.parameters:
            return
        given = request.parameters[SEQUENCE_ID]
        kind = given.WhichOneof("parameter_choice")
        if kind not in ("int64_param", "uint64_param", "string_param"):
            raise InvalidRequest("sequence_id must be an integer or a string", param=SEQUENCE_ID)
        own = self.own(tenant, request.model_name, getattr(given, kind))
        if isinstance(own, str):
            given.string_param = own
        else:
            given.int64_param = own  # the kind that every release of Triton takes

    def own(self, tenant: str, model: str, given: int | str) -> int | str:
        """Our id for the client's, of the same kind; 0 and '' mean no sequence, and stay.

        Numbers are 1 to 2**63 - 1, texts their hexadecimal digits.
        """
        if not given:
            return given
        keyed = self._keyed.copy()
        keyed.update(repr((tenant, model, given)).encode())
        number = int.from_bytes(keyed.digest()) >> 1 or 1
        return number if isinstance(given, int) else f"{number:016x}"


class SequenceStep(NamedTuple):
    """What a request says of its sequence; ``id`` is ours."""

    id: int | str
    starts: bool
    ends: bool


def step_of(request: Any) -> SequenceStep | None:
    """The sequence of a ModelInferRequest that ``put_own`` has been through; None without one."""
    parameters = request.parameters
    if SEQUENCE_ID not in parameters:
        return None
    given = parameters[SEQUENCE_ID]
    own = given.string_param or given.int64_param
    if not own:
        return None
    starts, ends = (key in parameters and parameters[key].bool_param for key in (STARTS, ENDS))
    return SequenceStep(own, starts, ends)


class SequenceSlots(NamedTuple):
    """What one server has of a sequence model: how many sequences at once, and after how many
    seconds without a request it gives up one."""

    at_once: int
    idle_s: float


@dataclass(slots=True)
class OpenSequence:
    """``group`` is (tenant, model, address of the server)."""

    group: tuple[str, str, str]
    idle_s: float
    expires: float  # monotonic s; while requests are under way it does not
    under_way: int = 0
    is_lost: bool = False  # a request found its server gone


class OpenSequences:
    """The sequences that this process has seen begin and not yet end, and where they are.

    One is forgotten when its last request was answered, or when it was idle for as long as Triton
    keeps it. It is kept when a request of it has failed: Triton then keeps it too.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: dict[int | str, OpenSequence] = {}
        self._groups: dict[tuple[str, str, str], set[int | str]] = {}

    def __len__(self) -> int:
        return len(self._open)

    def place(self, identifier: int | str) -> str:
        """The address of the server that it was begun at; '' when that is not known here, LOST when
        it was lost with its server."""
        found = self._open.get(identifier)
        if found is None or self._is_over(found):
            return ""
        return LOST if found.is_lost else found.group[2]

    def lose(self, identifier: int | str) -> None:
        """Its server is gone: even if that comes back, the sequence lacks a request by now."""
        found = self._open.get(identifier)
        if found:
            found.is_lost = True
            found.expires = self._clock() + found.idle_s

    def enter(
        self, step: SequenceStep, group: tuple[str, str, str], idle_s: float, limit: int | None
    ) -> OpenSequence:
        """A request of the sequence is about to be sent; ``leave`` once it has its answer.

        QuotaExceeded when it starts one and ``limit`` are open in its group.
        """
        found = self._open.get(step.id)
        if found and (found.is_lost or found.group != group or self._is_over(found)):
            self._forget(step.id)
            found = None
        if found is None:
            if step.starts and limit is not None:
                self._check(group, limit)
            found = OpenSequence(group, idle_s, self._clock() + idle_s)
            self._open[step.id] = found
            self._groups.setdefault(group, set()).add(step.id)
        found.under_way += 1
        return found

    def leave(
        self, found: OpenSequence, step: SequenceStep, error: BaseException | None = None
    ) -> None:
        """The request was answered, or ended in ``error``; ``found`` is what ``enter`` gave."""
        found.under_way -= 1
        found.expires = self._clock() + found.idle_s
        if error is None:
            is_over = step.ends
        else:
            # It never reached a server, or the server has gone; or there was nothing to go on with.
            is_over = isinstance(error, NoCapacity) or (
                isinstance(error, GatewayError) and not step.starts and error.param == SEQUENCE_ID
            )
        if is_over and self._open.get(step.id) is found:
            self._forget(step.id)

    @contextmanager
    def under_way(
        self, step: SequenceStep, group: tuple[str, str, str], idle_s: float, limit: int | None
    ) -> Iterator[None]:
        """``enter`` and ``leave`` around a request with one answer."""
        found = self.enter(step, group, idle_s, limit)
        try:
            yield
        except BaseException as error:
            self.leave(found, step, error)
            raise
        self.leave(found, step)

    def sweep(self) -> None:
        """Forget what Triton has given up by now; to be called now and then."""
        for identifier in [each for each, found in self._open.items() if self._is_over(found)]:
            self._forget(identifier)

    def _is_over(self, found: OpenSequence) -> bool:
        return not found.under_way and found.expires <= self._clock()

    def _check(self, group: tuple[str, str, str], limit: int) -> None:
        members = self._groups.get(group, set())
        for identifier in [each for each in members if self._is_over(self._open[each])]:
            self._forget(identifier)
        if len(members) < limit:
            return
        first = min(self._open[each].expires for each in members)
        raise QuotaExceeded(
            f"{len(members)} sequences of yours are open with {group[1]!r}, of {limit} that may be "
            "at once: end one with sequence_end, or try again later",
            retry_after_s=max(1, ceil(first - self._clock())),
        )

    def _forget(self, identifier: int | str) -> None:
        found = self._open.pop(identifier)
        members = self._groups[found.group]
        members.discard(identifier)
        if not members:
            del self._groups[found.group]


def not_begun() -> InvalidRequest:
    """Of a request that goes on with a sequence which its server does not know."""
    return InvalidRequest(
        "the server does not know this sequence: it was not begun, was idle for too long or is "
        "lost; send sequence_start with its first request",
        param=SEQUENCE_ID,
    )

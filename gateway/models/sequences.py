"""Sequences: their ids, and which of them are open.

The client's id is mapped to ours, so that no tenant can reach into another's sequence. Ours is a
keyed hash of tenant, model and client id. So every worker and every replica of the gateway computes
the same one, there is no table that could grow or would have to expire, and nobody without the
pepper can tell the id of another tenant's sequence. The chance that two open sequences collide is
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
from typing import TYPE_CHECKING, NamedTuple

from gateway.errors import GatewayError, InvalidRequest, NoCapacity, QuotaExceeded

if TYPE_CHECKING:
    from tritonclient.grpc import service_pb2

SEQUENCE_ID = "sequence_id"
LOST = "lost"  # no server has this address
STARTS, ENDS = "sequence_start", "sequence_end"
# Triton sets these on every response of an ensemble; they mean nothing to a client.
ENSEMBLE_PARAMETERS = frozenset({SEQUENCE_ID, STARTS, ENDS})


class SequenceIds:
    """Without a pepper each process has its own secret: sequences then stay with one worker."""

    def __init__(self, pepper_file: Path) -> None:
        pepper = pepper_file.read_bytes() if pepper_file.exists() else b""
        secret = pepper or secrets.token_bytes(32)
        self._keyed = hashlib.blake2b(key=secret[:64], digest_size=8, person=b"tg-sequence")

    def put_own(self, request: "service_pb2.ModelInferRequest", tenant: str) -> None:
        """Replace the client's sequence id in a ModelInferRequest by ours. Raises InvalidRequest if
        it is not a valid id."""
        if SEQUENCE_ID not in request.parameters:
            return
        parameter = request.parameters[SEQUENCE_ID]
        field = parameter.WhichOneof("parameter_choice")
        if field not in ("int64_param", "uint64_param", "string_param"):
            raise InvalidRequest("sequence_id must be an integer or a string", param=SEQUENCE_ID)
        own_id = self.own(tenant, request.model_name, getattr(parameter, field))
        if isinstance(own_id, str):
            parameter.string_param = own_id
        else:
            parameter.int64_param = own_id  # the type that every release of Triton takes

    def own(self, tenant: str, model: str, client_id: int | str) -> int | str:
        """Our id for the client's, of the same type; 0 and '' mean no sequence, and are unchanged.

        Integers are 1 to 2**63 - 1, strings their hexadecimal digits.
        """
        if not client_id:
            return client_id
        keyed = self._keyed.copy()
        keyed.update(repr((tenant, model, client_id)).encode())
        number = int.from_bytes(keyed.digest()) >> 1 or 1
        return number if isinstance(client_id, int) else f"{number:016x}"


class SequenceStep(NamedTuple):
    """A request's part in its sequence; ``id`` is ours."""

    id: int | str
    starts: bool
    ends: bool


def step_of(request: "service_pb2.ModelInferRequest") -> SequenceStep | None:
    """The sequence of a ModelInferRequest after ``put_own``; None if it has none."""
    parameters = request.parameters
    if SEQUENCE_ID not in parameters:
        return None
    parameter = parameters[SEQUENCE_ID]
    own_id = parameter.string_param or parameter.int64_param
    if not own_id:
        return None
    starts, ends = (key in parameters and parameters[key].bool_param for key in (STARTS, ENDS))
    return SequenceStep(own_id, starts, ends)


class SequenceSlots(NamedTuple):
    """One server's slots for a sequence model: how many sequences it takes at once, and after how
    many seconds without a request it drops one."""

    at_once: int
    idle_s: float


@dataclass(slots=True)
class OpenSequence:
    """``group`` is (tenant, model, address of the server)."""

    group: tuple[str, str, str]
    idle_s: float
    expires: float  # monotonic seconds; does not apply while requests are in flight
    in_flight: int = 0
    is_lost: bool = False  # a request has found that its server is gone


class OpenSequences:
    """The sequences that this process has seen start and not yet end, and where they are.

    One is forgotten when its last request has been answered, or when it has been idle for as long
    as Triton keeps it. It is kept when one of its requests fails: Triton then keeps it too.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: dict[int | str, OpenSequence] = {}
        self._groups: dict[tuple[str, str, str], set[int | str]] = {}

    def __len__(self) -> int:
        return len(self._open)

    def address(self, identifier: int | str) -> str:
        """The address of the server on which it was started; '' if this process does not know it,
        LOST if it was lost with its server."""
        sequence = self._open.get(identifier)
        if sequence is None or self._is_over(sequence):
            return ""
        return LOST if sequence.is_lost else sequence.group[2]

    def are_at(self, address: str) -> bool:
        """Whether any was started on the server of this address and is still open."""
        return any(
            group[2] == address and not self._is_over(self._open[identifier])
            for group, members in self._groups.items()
            for identifier in members
        )

    def lose(self, identifier: int | str) -> None:
        """Its server is gone: even if that comes back, the sequence lacks a request by now."""
        sequence = self._open.get(identifier)
        if sequence:
            sequence.is_lost = True
            sequence.expires = self._clock() + sequence.idle_s

    def enter(
        self, step: SequenceStep, group: tuple[str, str, str], idle_s: float, limit: int | None
    ) -> OpenSequence:
        """Call before sending a request of the sequence, and ``leave`` once it has been answered.

        Raises QuotaExceeded if it starts a sequence and ``limit`` are open in its group.
        """
        sequence = self._open.get(step.id)
        if sequence and (sequence.is_lost or sequence.group != group or self._is_over(sequence)):
            self._forget(step.id)
            sequence = None
        if sequence is None:
            if step.starts and limit is not None:
                self._check(group, limit)
            sequence = OpenSequence(group, idle_s, self._clock() + idle_s)
            self._open[step.id] = sequence
            self._groups.setdefault(group, set()).add(step.id)
        sequence.in_flight += 1
        return sequence

    def leave(
        self, sequence: OpenSequence, step: SequenceStep, error: BaseException | None = None
    ) -> None:
        """The request was answered or failed with ``error``; ``sequence`` is from ``enter``."""
        sequence.in_flight -= 1
        sequence.expires = self._clock() + sequence.idle_s
        if error is None:
            is_over = step.ends
        else:
            # It never reached a server, or the server is gone; or the server knew no such sequence.
            is_over = isinstance(error, NoCapacity) or (
                isinstance(error, GatewayError) and not step.starts and error.param == SEQUENCE_ID
            )
        if is_over and self._open.get(step.id) is sequence:
            self._forget(step.id)

    @contextmanager
    def under_way(
        self, step: SequenceStep, group: tuple[str, str, str], idle_s: float, limit: int | None
    ) -> Iterator[None]:
        """``enter`` and ``leave`` around a request with one response."""
        sequence = self.enter(step, group, idle_s, limit)
        try:
            yield
        except BaseException as error:
            self.leave(sequence, step, error)
            raise
        self.leave(sequence, step)

    def sweep(self) -> None:
        """Forget the sequences that Triton has dropped by now. Call it now and then."""
        expired = [key for key, sequence in self._open.items() if self._is_over(sequence)]
        for identifier in expired:
            self._forget(identifier)

    def _is_over(self, sequence: OpenSequence) -> bool:
        return not sequence.in_flight and sequence.expires <= self._clock()

    def _check(self, group: tuple[str, str, str], limit: int) -> None:
        members = self._groups.get(group, set())
        for identifier in [key for key in members if self._is_over(self._open[key])]:
            self._forget(identifier)
        if len(members) < limit:
            return
        first_expiry = min(self._open[identifier].expires for identifier in members)
        raise QuotaExceeded(
            f"you have {len(members)} open sequences with {group[1]!r}, and may have {limit}: end "
            "one with sequence_end, or try again later",
            retry_after_s=max(1, ceil(first_expiry - self._clock())),
        )

    def _forget(self, identifier: int | str) -> None:
        sequence = self._open.pop(identifier)
        members = self._groups[sequence.group]
        members.discard(identifier)
        if not members:
            del self._groups[sequence.group]


def not_begun() -> InvalidRequest:
    """The error for a request that continues a sequence unknown to its server."""
    return InvalidRequest(
        "the server does not know this sequence: it was not started, was idle for too long or was "
        "lost; send sequence_start with its first request",
        param=SEQUENCE_ID,
    )

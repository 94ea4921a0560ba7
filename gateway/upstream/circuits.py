"""A circuit breaker for each pipeline and caller: while every replica fails most of a caller's
requests for a pipeline, the next ones are refused at once.

An outlier is found by comparison (``outliers``); this is for what fails everywhere, where there is
nobody to compare with. It is each caller's own, because anybody can send requests that make a model
fail: they must not close the model to others, not even to those of the same tenant (without
``[tenants]`` all callers are of one). Only failures of the model or its server count, never a
client's error, a missed deadline or a full model.

When a circuit has been open for ``OPEN_S`` seconds, one request at a time is let through. A good
answer closes it: then not every replica fails, and those that do are found by comparison. As many
failures as there are replicas open it for as long again.
"""

import math
import time
from collections.abc import Callable, Collection
from enum import Enum

from gateway.upstream.outliers import WINDOW_S, Record

OPEN_S = 5.0  # as the first ejection of an outlier
# On every replica so many more requests must have failed than were answered: one that fails 3 of 10
# by chance comes that far in 3 of 1,000 bad spells, one that fails most of them at once.
MARGIN = 8.0
FORGOTTEN_S = 3 * WINDOW_S  # after its last failure
CIRCUITS = 1000  # that are watched at most: the one with the oldest failure is forgotten
Key = tuple[str, str]  # pipeline, id of the caller


class Outcome(Enum):
    """What became of a request; NEITHER says nothing about the pipeline."""

    ANSWERED = "answered"
    FAILED = "failed"
    NEITHER = "neither"


class _Circuit:
    """``trials`` has the state once it has been open, of which so many have ``failed_trials``;
    ``replicas`` what became of the requests at each address before."""

    def __init__(self) -> None:
        self.replicas: dict[str, Record] = {}
        self.trials = Record()
        self.failed_trials = 0
        self.failed_at = 0.0

    @property
    def is_open(self) -> bool:
        """Whether it is open, or on trial."""
        return self.trials.trials_left > 0

    def open(self, now: float) -> None:
        self.trials.eject(now, for_longer=not self.trials.ejections)  # always for as long
        self.replicas.clear()
        self.failed_trials = 0


class Circuits:
    """Those of one process. Nothing is kept of a pipeline that has not failed lately."""

    def __init__(
        self,
        on_change: Callable[[str, str, bool], None] = lambda pipeline, caller, is_open: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``on_change(pipeline, caller, is_open)`` is called when a circuit opens or closes."""
        self._on_change, self._clock = on_change, clock
        self._circuits: dict[Key, _Circuit] = {}

    def __bool__(self) -> bool:
        """Whether any is watched: else there is nothing to ask."""
        return bool(self._circuits)

    def retry_after_s(self, pipeline: str, caller: str) -> int:
        """0 if a request may be sent, else the seconds after which it may be, rounded up."""
        circuit = self._circuits.get((pipeline, caller))
        now = self._clock()
        if circuit is None or not circuit.trials.gets_none(now):
            return 0
        return max(1, math.ceil(circuit.trials.ejected_until - now))

    def enter(self, pipeline: str, caller: str) -> bool:
        """A request is sent, which ``retry_after_s`` allows: whether it is a trial."""
        circuit = self._circuits.get((pipeline, caller))
        if circuit is None or not circuit.is_open:
            return False
        circuit.trials.trial_began(self._clock())
        return True

    def ended(
        self,
        key: Key,
        address: str,
        outcome: Outcome,
        replicas: Callable[[], Collection[str]],
        *,
        is_trial: bool,
    ) -> None:
        """A request ended at the replica of this address. ``replicas`` has the addresses of those
        that get the pipeline's requests now: one that gets none (it is drained, say) fails none,
        and must not keep the circuit closed."""
        now, circuit = self._clock(), self._circuits.get(key)
        if circuit is None:
            if outcome is not Outcome.FAILED:
                return
            circuit = self._watch(key, now)
        if is_trial:
            circuit.trials.trials = max(0, circuit.trials.trials - 1)
        if outcome is Outcome.FAILED:
            circuit.failed_at = now
        if circuit.is_open:
            if is_trial:
                self._judge_trial(key, circuit, outcome, len(replicas()))
            return  # what was sent before it opened says nothing new
        record = circuit.replicas.setdefault(address, Record())
        if outcome is Outcome.ANSWERED:
            record.answered(0.0, now, by_lot=True)
        elif outcome is Outcome.FAILED:
            record.failed(now, by_lot=True)
            addresses = replicas()
            if addresses and all(self._fails(circuit, known, now) for known in addresses):
                circuit.open(now)
                self._on_change(*key, True)

    def _judge_trial(self, key: Key, circuit: _Circuit, outcome: Outcome, replicas: int) -> None:
        if outcome is Outcome.ANSWERED:
            del self._circuits[key]
            self._on_change(*key, False)
        elif outcome is Outcome.FAILED:
            circuit.failed_trials += 1
            if circuit.failed_trials >= replicas:
                circuit.open(self._clock())

    def _fails(self, circuit: _Circuit, address: str, now: float) -> bool:
        record = circuit.replicas.get(address)
        if record is None:
            return False
        answers, failures = record.counts(now)
        # Rounded: weights decay from the moment that a request ended.
        return round(failures - answers) >= MARGIN

    def _watch(self, key: Key, now: float) -> _Circuit:
        for known in [
            known
            for known, circuit in self._circuits.items()
            if not circuit.is_open and now - circuit.failed_at > FORGOTTEN_S
        ]:
            del self._circuits[known]
        if len(self._circuits) >= CIRCUITS:
            del self._circuits[
                min(self._circuits, key=lambda known: self._circuits[known].failed_at)
            ]
        circuit = self._circuits[key] = _Circuit()
        return circuit

    def open_ones(self, pipeline: str) -> dict[str, float]:
        """The callers for whom the pipeline's circuit is open or on trial -> the seconds until the
        next trial; 0.0: it is on trial."""
        now = self._clock()
        return {
            caller: max(0.0, circuit.trials.ejected_until - now)
            for (name, caller), circuit in self._circuits.items()
            if name == pipeline and circuit.is_open
        }

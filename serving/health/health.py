"""What is wrong with the models of one Triton: dead processes, processes that hang, and golden
samples that fail.

Triton itself reports READY in all of these cases.
"""

import collections
import time
from collections.abc import Iterable

from modelspec.golden import LEAST_PROBE_S, probe_time_s
from serving.errors import DeadlineExceeded, ServingError
from serving.health.probing import Probing
from serving.health.progress import Progress
from serving.health.work import Work
from serving.triton.control import READY, UNAVAILABLE, TritonControl
from serving.triton.golden import IS_LATE, NO_RESPONSE, fault
from serving.triton.stubs import Stub, live_stubs

PROBE_EVERY_S = 5.0
# A model that has not answered its probe for this long is checked for progress.
LATE_S = LEAST_PROBE_S
# Between two looks at all processes of the machine, which may be thousands, while those that are
# known live.
SCAN_EVERY_S = 1.0
# One wrong answer may be a reload under way; two in a row are not.
FAULTS_NEEDED = 2


class Health:
    """Call ``dead_models``, ``hung`` and ``verdicts`` often, and ``probe`` when
    ``is_time_to_probe``.

    ``longest_request_s`` is how long a request may legitimately take.
    """

    def __init__(self, control: TritonControl, longest_request_s: float = 0.0) -> None:
        self._control = control
        self._stubs: set[Stub] = set()
        self._retired: set[Stub] = set()
        self._known: set[tuple[str, str]] = set()  # (model, version) pairs that have processes
        self._doubted: set[tuple[str, str]] = set()  # those of them that may have too few
        self._faults: collections.Counter[str] = collections.Counter()
        self._latency_s: dict[str, float] = {}  # of each model's last right answer
        self._progress = Progress(longest_request_s, control.load_timeout_s)
        self._work = Work(control, self._progress.hung_s)
        self._probing = Probing(self._probe)
        self._next_scan = 0.0
        self._next_probe = 0.0
        self._next_late = 0.0

    def remember(self, server_pid: int | None) -> None:
        """Take the processes that live now as the expected ones; all have loaded their models."""
        self._stubs = live_stubs(server_pid) if server_pid else set()
        self._progress.loaded(self._stubs)
        self._known |= set(_per_version(self._stubs))

    def restarted(self, server_pid: int | None) -> None:
        """The server is a new one: forget everything that was known about its processes."""
        self._retired, self._known, self._doubted = set(), set(), set()
        for model in list(self._faults):
            self.forget(model)
        self.remember(server_pid)

    def processes(self) -> set[Stub]:
        """The processes that were alive at the last check."""
        return set(self._stubs)

    def retire(self, stubs: Iterable[Stub]) -> None:
        """These processes were replaced: they end when they may, and no longer count."""
        self._retired |= set(stubs)

    def dead_models(self, server_pid: int) -> list[str]:
        """Models that have too few processes now. Reported for as long as that is so: a death that
        could not be acted on is reported again."""
        now = self._live(server_pid)
        self._retired &= now
        counts = _per_version(now - self._retired)
        self._known |= set(counts)
        self._doubted |= set(_per_version(self._stubs - self._retired) - counts)
        self._stubs = now
        if not self._doubted:
            return []
        states = {(model.name, model.version): model.state for model in self._control.index()}
        dead = set()
        for pair in sorted(self._doubted):
            # An unloaded version has lost its processes on purpose; and while a model loads, Triton
            # briefly starts one more, to complete the config.
            state = states.get(pair, UNAVAILABLE)
            if state == READY and counts[pair] < self._instances(pair[0]):
                dead.add(pair[0])
            elif state in {READY, UNAVAILABLE}:
                self._doubted.discard(pair)
        return sorted(dead)

    def _live(self, server_pid: int) -> set[Stub]:
        """The processes that live now. New ones may be missing for ``SCAN_EVERY_S``, unless one has
        ended or a model is in doubt: its new process may be there already."""
        is_calm = not self._doubted and all(stub.is_alive for stub in self._stubs)
        if is_calm and time.monotonic() < self._next_scan:
            return set(self._stubs)
        self._next_scan = time.monotonic() + SCAN_EVERY_S
        return live_stubs(server_pid)

    def hung(self) -> dict[Stub, str]:
        """The processes that hang, each with a description; their siblings may work."""
        self._progress.look(self._stubs)
        return self._progress.hung()

    def idle_s(self, stub: Stub) -> float:
        """For how many seconds the process has been idle."""
        return self._progress.idle_s(stub)

    def is_time_to_probe(self) -> bool:
        return time.monotonic() >= self._next_probe

    def probe(self, models: Iterable[str]) -> None:
        """Send the golden samples without waiting for answers, and have every model's processes
        counted again."""
        self._next_probe = time.monotonic() + PROBE_EVERY_S
        self._doubted |= self._known
        self._probing.begin(models)

    def verdicts(self) -> dict[str, str]:
        """The models with a new verdict: '' for a healthy one, and what is wrong with those that
        fail their golden sample for the second time running."""
        verdicts: dict[str, str] = {}
        late: list[str] = []
        for model, (problem, latency_s) in self._probing.take().items():
            if problem.endswith(IS_LATE):
                late.append(model)
                continue
            if not problem:
                self._latency_s[model] = latency_s
            self._work.forget(model)
            verdicts[model] = problem
        if time.monotonic() >= self._next_late:
            self._next_late = time.monotonic() + PROBE_EVERY_S
            late += self._probing.late(LATE_S)
        for model in late:
            # Load is not death: a late answer counts only if the model does nothing.
            idle_s = self._work.idle_s(model, self._stubs)
            if idle_s:
                verdicts[model] = f"has not answered and not worked for {idle_s:.0f} s"
        for model, problem in verdicts.items():
            self._faults[model] = self._faults[model] + 1 if problem else 0
        return {
            model: problem
            for model, problem in verdicts.items()
            if not 0 < self._faults[model] < FAULTS_NEEDED
        }

    def hung_stubs(self, model: str) -> list[Stub]:
        """The processes of a model that neither answers nor works; [] for one that may be busy."""
        names = self._work.parts(model) if self._work.is_hung(model) else set()
        return [stub for stub in self._stubs if stub.model in names]

    def forget(self, model: str) -> None:
        """The model was reloaded: it gets its full time again, and earlier probes are void."""
        self._work.forget(model)
        self._probing.forget(model)

    def is_right(self, model: str) -> bool:
        """Whether the model's last golden answer was right."""
        return self._faults[model] == 0

    def fault(self, model: str) -> str:
        """'' if the model is served and gives its golden answer (or has no golden sample), else
        what is wrong. A late answer is no fault: the model may have a backlog. Waits for ``LATE_S``
        seconds at most."""
        problem = self._ask(model, LATE_S)
        return "" if problem.endswith(IS_LATE) else problem

    def _probe(self, model: str) -> str:
        return self._ask(model, probe_time_s(self._latency_s.get(model)))

    def _ask(self, model: str, timeout_s: float) -> str:
        try:
            config = self._control.config(model)
        except DeadlineExceeded:
            return NO_RESPONSE + IS_LATE  # whether the server answers at all is for Pulse to judge
        except ServingError as error:
            return f"is not served ({error})"
        return fault(self._control, model, config, timeout_s)

    def _instances(self, model: str) -> int:
        """How many processes each version of the model should have."""
        groups = self._control.config(model).instance_group
        return sum(group.count * max(1, len(group.gpus)) for group in groups)


def _per_version(stubs: set[Stub]) -> "collections.Counter[tuple[str, str]]":
    return collections.Counter((stub.model, stub.version) for stub in stubs)

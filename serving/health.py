"""What is wrong with the models of one Triton: dead processes, processes that hang, and golden
answers that fail.

Triton itself says READY in all of these cases.
"""

import collections
import time
from collections.abc import Iterable

from modelspec.golden import LEAST_PROBE_S, probe_time_s
from serving.control import TritonControl
from serving.errors import NoAnswerInTime, ServingError
from serving.golden import IS_LATE, NO_ANSWER, fault
from serving.probing import Probing
from serving.progress import Progress
from serving.replica import READY, UNAVAILABLE
from serving.stubs import Stub, live_stubs
from serving.work import Work

PROBE_EVERY_S = 5.0
# So long after it was asked, a model that has not answered is looked at: does it get on?
LATE_S = LEAST_PROBE_S
# One wrong answer may be a reload under way; two in a row are not.
FAULTS_BELIEVED = 2


class Health:
    """Ask ``dead_models``, ``hung`` and ``judged`` often, and ``probe`` when ``is_time_to_probe``.

    ``longest_request_s`` is how long a request may rightly take.
    """

    def __init__(self, control: TritonControl, longest_request_s: float = 0.0) -> None:
        self._control = control
        self._stubs: set[Stub] = set()
        self._retired: set[Stub] = set()
        self._known: set[tuple[str, str]] = set()  # model, version: they have processes
        self._doubted: set[tuple[str, str]] = set()  # of these, those that may have too few
        self._faults: collections.Counter[str] = collections.Counter()
        self._took: dict[str, float] = {}  # model -> seconds that its last right answer took
        self._progress = Progress(longest_request_s, control.load_timeout_s)
        self._work = Work(control, self._progress.hung_s)
        self._probing = Probing(self._asked)
        self._next_probe = 0.0
        self._next_late = 0.0

    def remember(self, server_pid: int | None) -> None:
        """Take the processes that live now for those that should; all have loaded their models."""
        self._stubs = live_stubs(server_pid) if server_pid else set()
        self._progress.loaded(self._stubs)
        self._known |= set(_per_version(self._stubs))

    def restarted(self, server_pid: int | None) -> None:
        """It is another server: nothing that was known of the processes holds."""
        self._retired, self._known, self._doubted = set(), set(), set()
        for model in list(self._faults):
            self.forget(model)
        self.remember(server_pid)

    def processes(self) -> set[Stub]:
        """The processes that lived when they were last looked at."""
        return set(self._stubs)

    def retire(self, stubs: Iterable[Stub]) -> None:
        """These were replaced: they end when they may, and are counted no more."""
        self._retired |= set(stubs)

    def dead_models(self, server_pid: int) -> list[str]:
        """Models that have too few processes now, for as long as that is so: a death that could not
        be acted on is seen again."""
        now = live_stubs(server_pid)
        self._retired &= now
        left = _per_version(now - self._retired)
        self._known |= set(left)
        self._doubted |= set(_per_version(self._stubs - self._retired) - left)
        self._stubs = now
        if not self._doubted:
            return []
        states = {(each.name, each.version): each.state for each in self._control.index()}
        found = set()
        for pair in sorted(self._doubted):
            # A version that was unloaded has lost its processes rightly; and while a model loads,
            # Triton starts one more for a moment, to complete the config.
            state = states.get(pair, UNAVAILABLE)
            if state == READY and left[pair] < self._instances(pair[0]):
                found.add(pair[0])
            elif state in {READY, UNAVAILABLE}:
                self._doubted.discard(pair)
        return sorted(found)

    def hung(self) -> dict[Stub, str]:
        """The processes that hang, and how; their siblings may work."""
        self._progress.look(self._stubs)
        return self._progress.hung()

    def resting_s(self, stub: Stub) -> float:
        """For how long the process has had nothing to do."""
        return self._progress.resting_s(stub)

    def is_time_to_probe(self) -> bool:
        return time.monotonic() >= self._next_probe

    def probe(self, models: Iterable[str]) -> None:
        """Ask the golden samples, without waiting; and doubt that processes are as many as they
        should be."""
        self._next_probe = time.monotonic() + PROBE_EVERY_S
        self._doubted |= self._known
        self._probing.begin(models)

    def judged(self) -> dict[str, str]:
        """The models of which something is known anew: '' or, of those that fail their golden
        sample for the second time running, what is wrong."""
        found: dict[str, str] = {}
        late: list[str] = []
        for model, (wrong, took_s) in self._probing.take().items():
            if wrong.endswith(IS_LATE):
                late.append(model)
                continue
            if not wrong:
                self._took[model] = took_s
            self._work.forget(model)
            found[model] = wrong
        if time.monotonic() >= self._next_late:
            self._next_late = time.monotonic() + PROBE_EVERY_S
            late += self._probing.late(LATE_S)
        for model in late:
            # Load is not death: what is late counts only when the model does nothing.
            idle_s = self._work.idle_s(model, self._stubs)
            if idle_s:
                found[model] = f"has not answered and not worked for {idle_s:.0f} s"
        for model, wrong in found.items():
            self._faults[model] = self._faults[model] + 1 if wrong else 0
        return {m: wrong for m, wrong in found.items() if not 0 < self._faults[m] < FAULTS_BELIEVED}

    def hung_stubs(self, model: str) -> list[Stub]:
        """The processes of a model that neither answers nor works; [] of one that may be busy."""
        names = self._work.parts(model) if self._work.is_hung(model) else set()
        return [stub for stub in self._stubs if stub.model in names]

    def forget(self, model: str) -> None:
        """The model was treated: it has its time again, and what it was asked before is void."""
        self._work.forget(model)
        self._probing.forget(model)

    def is_right(self, model: str) -> bool:
        """Whether the model's last golden answer was right."""
        return self._faults[model] == 0

    def fault(self, model: str) -> str:
        """'' when the model is served and gives its golden answer, if it has one, or is only late:
        it may have much to catch up with. Waits ``LATE_S`` at most."""
        wrong = self._ask(model, LATE_S)
        return "" if wrong.endswith(IS_LATE) else wrong

    def _asked(self, model: str) -> str:
        return self._ask(model, probe_time_s(self._took.get(model)))

    def _ask(self, model: str, timeout_s: float) -> str:
        try:
            config = self._control.config(model)
        except NoAnswerInTime:
            return NO_ANSWER + IS_LATE  # whether the server answers at all is the pulse's to say
        except ServingError as error:
            return f"is not served ({error})"
        return fault(self._control, model, config, timeout_s)

    def _instances(self, model: str) -> int:
        """How many processes each version of the model should have."""
        groups = self._control.config(model).instance_group
        return sum(group.count * max(1, len(group.gpus)) for group in groups)


def _per_version(stubs: set[Stub]) -> "collections.Counter[tuple[str, str]]":
    return collections.Counter((stub.model, stub.version) for stub in stubs)

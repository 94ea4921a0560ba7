"""What is wrong with the models of one Triton: dead processes, and golden answers that fail.

Triton itself says READY in both cases.
"""

import collections
import time
from collections.abc import Iterable

from serving.control import TritonControl
from serving.errors import NoAnswerInTime, ServingError
from serving.golden import IS_LATE, fault
from serving.replica import READY
from serving.stubs import Stub, live_stubs
from serving.work import Work

PROBE_EVERY_S = 5.0
PROBE_TIMEOUT_S = 5.0
# One wrong answer may be a reload under way; two in a row are not.
FAULTS_BELIEVED = 2


class Health:
    """Ask ``dead_models`` often, and ``probe`` when ``is_time_to_probe``."""

    def __init__(self, control: TritonControl) -> None:
        self._control = control
        self._stubs: set[Stub] = set()
        self._faults: collections.Counter[str] = collections.Counter()
        self._work = Work(control)
        self._next_probe = 0.0

    def remember(self, server_pid: int | None) -> None:
        """Take the processes that live now for those that should."""
        self._stubs = live_stubs(server_pid) if server_pid else set()

    def processes(self) -> set[Stub]:
        """The processes that lived when they were last looked at."""
        return set(self._stubs)

    def dead_models(self, server_pid: int) -> list[str]:
        """Models that lost a process since the last call and have too few of them now."""
        before, now = _per_version(self._stubs), live_stubs(server_pid)
        self._stubs = now
        left = _per_version(now)
        fewer = before - left
        if not fewer:
            return []
        ready = {(each.name, each.version) for each in self._control.index() if each.state == READY}
        # A version that was unloaded has lost its processes rightly; and while a model loads,
        # Triton starts one more for a moment, to complete the config.
        return sorted(
            {
                model
                for model, version in fewer
                if (model, version) in ready and left[model, version] < self._instances(model)
            }
        )

    def is_time_to_probe(self) -> bool:
        return time.monotonic() >= self._next_probe

    def probe(self, models: Iterable[str]) -> dict[str, str]:
        """The models that fail their golden sample for the second time running, and how."""
        self._next_probe = time.monotonic() + PROBE_EVERY_S
        found = {model: self._believed(model, self.fault(model)) for model in models}
        for model, wrong in found.items():
            self._faults[model] = self._faults[model] + 1 if wrong else 0
        return {m: wrong for m, wrong in found.items() if self._faults[m] >= FAULTS_BELIEVED}

    def hung_stubs(self, model: str) -> list[Stub]:
        """The processes of a model that neither answers nor works; [] of one that may be busy."""
        names = self._work.parts(model) if self._work.is_hung(model) else set()
        return [stub for stub in self._stubs if stub.model in names]

    def forget_work(self, model: str) -> None:
        """The model was treated: it has its time again."""
        self._work.forget(model)

    def _believed(self, model: str, wrong: str) -> str:
        """Load is not death: an answer that is late counts only when the model does nothing."""
        if not wrong.endswith(IS_LATE):
            self._work.forget(model)
            return wrong
        idle_s = self._work.idle_s(model, [s for s in self._stubs if s.model])
        return f"has not answered and not worked for {idle_s:.0f} s" if idle_s else ""

    def is_right(self, model: str) -> bool:
        """Whether the model's last golden answer was right."""
        return self._faults[model] == 0

    def fault(self, model: str) -> str:
        """'' when the model is served and gives its golden answer, if it has one."""
        try:
            config = self._control.config(model)
        except NoAnswerInTime:
            return ""  # whether the server answers at all is not for us to say (see pulse)
        except ServingError as error:
            return f"is not served ({error})"
        return fault(self._control, model, config, PROBE_TIMEOUT_S)

    def _instances(self, model: str) -> int:
        """How many processes each version of the model should have."""
        groups = self._control.config(model).instance_group
        return sum(group.count * max(1, len(group.gpus)) for group in groups)


def _per_version(stubs: set[Stub]) -> "collections.Counter[tuple[str, str]]":
    return collections.Counter((stub.model, stub.version) for stub in stubs)

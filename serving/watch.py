"""Watch one Triton and heal it: a server that died is started again, a dead process is revived, a
model that fails its golden sample is loaded afresh. What cannot be healed is reported, once."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from modelspec.layout import CONFIG_FILE
from serving.errors import ModelLoadFailed, RepositoryBusy, ServingError
from serving.events import Events
from serving.golden import IS_LATE
from serving.health import Health
from serving.launch import TritonServer
from serving.lock import publishing
from serving.patient import FIRST_PAUSE_S, LONGEST_PAUSE_S, Patient
from serving.pins import listed_versions, pins
from serving.pulse import Pulse
from serving.replica import READY
from serving.repository import active_version, is_published, read_config, top_models
from serving.stubs import Stub

LOST_A_PROCESS = "lost a process"
UNLOAD_S = 10.0  # by then a request that the old process holds is over


class Watcher:
    """Call ``check`` often, from the thread that started the server.

    ``models`` are those that are loaded by name; what they are made of comes with them, and what
    is published later is watched too.
    """

    def __init__(
        self, server: TritonServer, models: Sequence[str], tell: Callable[[str], None]
    ) -> None:
        self._server, self._models, self._tell = server, list(models), tell
        self.events = Events(server.options.work_dir)
        self._health = Health(server.control)
        self._health.remember(server.pid)
        self._patients: dict[str, Patient] = {}
        self._ill: dict[str, str] = {}
        self._replaced: list[tuple[float, list[Stub]]] = []
        self._pause_s, self._not_before = FIRST_PAUSE_S, 0.0
        self._pulse = Pulse(server.control, lambda: server.pid, self._hear)
        self._pulse.start()

    def close(self) -> None:
        """Watch no more."""
        self._pulse.stop()

    def check(self) -> None:
        """Heal what has died since the last call; what fails is tried again after a pause.

        Never raises, whatever it meets: the watcher is what everything else relies on.
        """
        self._pulse.round_began = time.monotonic()
        try:
            self.events.beat()
            self._check()
        except Exception as error:
            self._not_before = time.monotonic() + LONGEST_PAUSE_S
            self._tell(
                f"the watcher failed and goes on in {LONGEST_PAUSE_S:g} s: "
                f"{type(error).__name__}: {error}"
            )
        finally:
            self._pulse.round_began = 0.0

    def _hear(self, event: str, detail: str) -> None:
        """From the pulse's thread."""
        self._tell(
            f"Triton hangs ({detail}); killing it"
            if event == "triton_hung"
            else f"{event}: {detail}"
        )
        self.events.add(event, "", detail)

    def _check(self) -> None:
        if time.monotonic() < self._not_before:
            return
        try:
            if not self._server.is_alive():
                self._restart()
            self._look()
        except (ServingError, OSError) as error:
            self._not_before = time.monotonic() + self._pause_s
            self._tell(f"not healed yet, trying again in {self._pause_s:g} s: {error}")
            self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)
            return
        self._pause_s = FIRST_PAUSE_S
        for model in list(self._ill):
            self._treat(model)
        self._end_replaced()

    def _restart(self) -> None:
        self._tell("Triton has ended; starting it again")
        self.events.add("triton_died", "")
        self._server.stop()
        self._server.start()
        repository = self._server.options.repository
        for model in self._models:
            if is_published(repository, model):
                self._server.control.load(model)
        self._health.remember(self._server.pid)
        self._tell("Triton is serving again")
        self.events.add("triton_restarted", "")

    def _look(self) -> None:
        """Note who is ill now."""
        for model in self._health.dead_models(self._server.pid or 0):
            self._tell(f"a process of model {model} died; reviving it")
            self.events.add("process_died", model)
            self._ill[model] = LOST_A_PROCESS
        if not self._health.is_time_to_probe():
            return
        self._models = self._watched()
        faults = self._health.probe(self._models)
        for model, fault in faults.items():
            if model not in self._ill:
                self._tell(f"{model} {fault}")
                self.events.add("probe_failed", model, fault)
            self._ill[model] = fault
        for model in set(self._models) & set(self._ill) - set(faults):
            # What has no golden sample passes every probe: a lost process it has all the same.
            if self._ill[model] != LOST_A_PROCESS and self._health.is_right(model):
                del self._ill[model]
                self.events.add("recovered", model)

    def _watched(self) -> list[str]:
        """Those we were given and are there still, and what has been published since."""
        repository = self._server.options.repository
        ready = {each.name for each in self._server.control.index() if each.state == READY}
        try:
            public = set(top_models(repository)) & ready
        except ModelLoadFailed:  # somebody edits a config: what is watched stays
            public = set()
        kept = [each for each in self._models if is_published(repository, each)]
        return [*kept, *sorted(public - set(kept))]

    def _treat(self, model: str) -> None:
        patient = self._patient(model)
        if not patient.is_due():
            return
        patient.begin()
        try:
            fault = self._heal(model)
        except RepositoryBusy:
            patient.attempts -= 1
            return
        except (ServingError, OSError) as error:
            fault = str(error)
        if not fault:
            del self._ill[model]
            self._tell(f"revived {model}")
            self.events.add("healed", model)
        elif patient.give_up():
            self._report(patient, fault)

    def _report(self, patient: Patient, fault: str) -> None:
        self._tell(
            f"{patient.model} cannot be healed, {patient.attempts} attempts failed: it {fault}. It "
            "is not tried again until another version is published (tidegate rollback "
            f"{patient.model} goes back to the one before) or Triton starts again"
        )
        self.events.add("given_up", patient.model, fault)

    def _patient(self, model: str) -> Patient:
        mark = self._mark(model)
        known = self._patients.get(model)
        if known is None or known.mark != mark or (known.is_well() and not known.is_given_up):
            self._patients[model] = Patient(model, mark)
        return self._patients[model]

    def _mark(self, model: str) -> int:
        path = self._server.options.repository / model / CONFIG_FILE
        return path.stat().st_mtime_ns if path.is_file() else 0

    def _alone(self, model: str) -> AbstractContextManager[None]:
        """A dead process is revived whatever goes on; the rest waits while somebody publishes."""
        if self._ill[model] == LOST_A_PROCESS:
            return nullcontext()
        return publishing(self._server.options.repository, f"heal {model}", wait_s=0)

    def _heal(self, model: str) -> str:
        """Load the model and what it pins afresh; '' when it is well, else what is wrong still."""
        repository = self._server.options.repository
        before = self._health.processes()
        hung = self._health.hung_stubs(model)
        for stub in hung:
            stub.end()  # what hangs does not end by itself, and would keep its version loaded
        self._health.forget_work(model)
        with self._alone(model):
            parts = _parts(repository, model)
            for each, versions in parts.items():
                for version in versions:
                    _touch_one(repository / each / str(version))
                self._server.control.load(each)
            self._server.control.load(model)
        self._health.remember(self._server.pid)
        replaced = [each for each in before if each.model in parts]
        self._replaced.append((time.monotonic() + UNLOAD_S, replaced))
        fault = self._health.fault(model)
        return "" if fault.endswith(IS_LATE) else fault  # it may have much to catch up with

    def _end_replaced(self) -> None:
        """End what Triton 2.51 keeps: when a process of a version has died, unloading that version
        hangs, and its other processes would stay for ever."""
        due = [each for each in self._replaced if time.monotonic() > each[0]]
        self._replaced = [each for each in self._replaced if each not in due]
        for _, stubs in due:
            for stub in stubs:
                stub.end()


def _parts(repository: Path, model: str) -> dict[str, list[int]]:
    """The models that have processes of their own, with the versions that serve: what an ensemble
    pins, or the model itself."""
    config = read_config(repository, model)
    pinned = pins(config)
    if not pinned:
        return {model: listed_versions(config) or [active_version(repository, model)]}
    return {each: sorted(versions) for each, versions in pinned.items()}


def _touch_one(version_folder: Path) -> None:
    """Loading brings a dead process back only if a file of its version has changed (2.51)."""
    # Preferably not a .py: its compiled twin would then be written anew, which is one more change.
    files = [path for path in version_folder.iterdir() if path.is_file()]
    for path in sorted(files, key=lambda path: path.suffix == ".py")[:1]:
        os.utime(path)

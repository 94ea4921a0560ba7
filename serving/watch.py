"""Watch one Triton and heal it: a server that died is started again, a dead process is revived, a
process that hangs is ended, a model that fails its golden sample is loaded afresh. What cannot be
healed is reported, once."""

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from modelspec.layout import CONFIG_FILE
from serving.errors import ModelLoadFailed, RepositoryBusy, ServingError
from serving.events import Events, telling
from serving.health import Health
from serving.launch import TritonServer
from serving.lock import publishing
from serving.pins import listed_versions, pins
from serving.pulse import Pulse
from serving.replica import READY
from serving.repository import active_version, is_published, read_config, top_models
from serving.restart_backoff import FIRST_PAUSE_S, LATER_S, LONGEST_PAUSE_S, RestartBackoff
from serving.stubs import Stub

LOST_A_PROCESS = "lost a process"
NOT_LOADED_YET = "is not loaded yet"
# After a restart the models are loaded one after the other; one that takes longer keeps the others
# waiting no more.
LOAD_TURN_S = 20.0
# So long a replaced process must have had nothing to do before it is ended. One that answers from
# threads of its own may look so between two answers.
REST_S, DECOUPLED_REST_S = 5.0, 30.0
# The whole of Triton's folder must not be writable for a model to be healed.
_READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT})
# The machine's, not the model's: memory (shared memory is a disk, too), descriptors, processes.
_WANTS = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN)


@dataclass(frozen=True)
class _Replaced:
    """A process that was replaced: it ends when it has had nothing to do for so long."""

    stub: Stub
    rest_s: float


class _Treatment:
    """One model that is being loaded, in a thread of its own: it may take minutes, and everything
    else has to be looked after meanwhile. ``error`` is what it ended with."""

    def __init__(
        self,
        model: str,
        names: frozenset[str],
        work: Callable[[], None],
        old: Sequence[Stub] = (),
    ) -> None:
        """``names``: the model and what it loads with it, which nobody else loads meanwhile;
        ``old``: the processes that it had before."""
        self.names, self.old, self._work = names, old, work
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"heal-{model}"[:15], daemon=True)
        self._thread.start()

    def is_over(self, wait_s: float = 0.0) -> bool:
        self._thread.join(wait_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._work()
        except Exception as error:
            self.error = error


class Watcher:
    """Call ``check`` often, from the thread that started the server.

    ``models`` are those that are loaded by name; what they are made of comes with them, and what
    is published later is watched too. ``longest_request_s`` is how long a request may rightly take.
    """

    def __init__(
        self,
        server: TritonServer,
        models: Sequence[str],
        tell: Callable[[str], None],
        longest_request_s: float = 0.0,
    ) -> None:
        self._server, self._models = server, list(models)
        self._tell = telling(tell)
        self.events = Events(server.options.work_dir, self._tell)
        self._longest_request_s = longest_request_s
        self._health = Health(server.control, longest_request_s)
        self._health.remember(server.pid)
        self._patients: dict[str, RestartBackoff] = {}
        self._ill: dict[str, str] = {}
        self._treatments: dict[str, _Treatment] = {}
        self._ended: set[Stub] = set()
        self._replaced: list[_Replaced] = []
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
            self.events.heartbeat()
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
            self._end_hung()
            self._look()
        except (ServingError, OSError) as error:
            self._not_before = time.monotonic() + self._pause_s
            self._tell(f"not healed yet, trying again in {self._pause_s:g} s: {error}")
            self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)
            return
        self._pause_s = FIRST_PAUSE_S
        self._end_replaced()
        for model in list({**self._ill, **self._treatments}):
            self._treat(model)

    def _restart(self) -> None:
        why = self._server.why_ended()
        self._tell(f"Triton has ended{why and f' ({why})'}; starting it again")
        self.events.add("triton_died", "", why)
        self._server.restart()
        self._treatments = {}  # their server is gone
        for model in self._models:
            self._load(model)
        self._replaced, self._ended = [], set()
        self._health.restarted(self._server.pid)
        self._tell("Triton is serving again")
        self.events.add("triton_restarted", "")

    def _load(self, model: str) -> None:
        """One model that does not load, or is slow to, keeps none of the others from being served:
        it is ill."""
        repository = self._server.options.repository
        try:
            if not is_published(repository, model):
                return
            parts = _parts(repository, model)
        except (ServingError, OSError, ValueError) as error:
            self._not_loaded(model, error)
            return
        treatment = _Treatment(
            model, frozenset({model, *parts}), lambda: self._server.control.load(model)
        )
        if not treatment.is_over(LOAD_TURN_S):
            self._tell(f"{model} takes long to load; the others are served meanwhile")
            self._ill[model] = NOT_LOADED_YET
            self._treatments[model] = treatment
        elif treatment.error is not None:
            if not self._server.is_alive():
                raise treatment.error
            self._not_loaded(model, treatment.error)

    def _not_loaded(self, model: str, error: Exception) -> None:
        self._tell(str(error))
        self.events.add("load_failed", model, str(error))
        self._ill[model] = str(error)

    def _end_hung(self) -> None:
        """End each process that hangs, and it alone: it is missed at the next look, and its model
        loaded again."""
        for stub, how in self._health.hung().items():
            if stub in self._ended:
                continue
            self._ended.add(stub)
            self._tell(f"a process of model {stub.model} ({stub.pid}) hangs: {how}; ending it")
            self.events.add("process_hung", stub.model, how)
            stub.end()

    def _look(self) -> None:
        """Note who is ill now."""
        treated = self._treated()
        for model in self._health.dead_models(self._server.pid or 0):
            if model not in treated and self._ill.get(model) != LOST_A_PROCESS:
                self._ill[model] = LOST_A_PROCESS
                self._tell(f"a process of model {model} died; reviving it")
                self.events.add("process_died", model)
        if self._health.is_time_to_probe():
            self._models = self._watched()
            self._health.probe([each for each in self._models if not self._names(each) & treated])
        for model, fault in self._health.judged().items():
            if model not in treated:
                self._note(model, fault)

    def _note(self, model: str, fault: str) -> None:
        """A verdict of the golden sample of one model; '' when it is well."""
        if fault and self._ill.get(model) != LOST_A_PROCESS:
            if model not in self._ill:
                self._tell(f"{model} {fault}")
                self.events.add("probe_failed", model, fault)
            self._ill[model] = fault
        # What has no golden sample passes every probe: a lost process it has all the same.
        elif not fault and self._ill.get(model, LOST_A_PROCESS) != LOST_A_PROCESS:
            del self._ill[model]
            self.events.add("recovered", model)

    def _watched(self) -> list[str]:
        """Those we were given and are there still, and what has been published since."""
        repository = self._server.options.repository
        ready = {each.name for each in self._server.control.index() if each.state == READY}
        try:
            public = set(top_models(repository)) & ready
            kept = [each for each in self._models if is_published(repository, each)]
        except (ModelLoadFailed, OSError, ValueError):  # somebody edits it, or it cannot be read
            return self._models
        return [*kept, *sorted(public - set(kept))]

    def _treated(self) -> set[str]:
        """The models that are being loaded: they are judged when that is over."""
        return {name for each in self._treatments.values() for name in each.names}

    def _names(self, model: str) -> set[str]:
        """The model and what it is made of, as far as that can be read."""
        try:
            return {model, *_parts(self._server.options.repository, model)}
        except (ServingError, OSError, ValueError):
            return {model}

    def _treat(self, model: str) -> None:
        """Begin to heal a model whose turn it is, or see how that went."""
        backoff = self._patient(model)
        treatment = self._treatments.get(model)
        if treatment is not None:
            if treatment.is_over():
                del self._treatments[model]
                self._judge(backoff, lambda: self._healed(model, treatment))
        elif backoff.is_due() and not self._names(model) & self._treated():
            backoff.begin()
            self._judge(backoff, lambda: self._heal(model))

    def _judge(self, backoff: RestartBackoff, step: Callable[[], str | None]) -> None:
        """Take one step of a treatment, which returns '' for a model that is well, what is wrong
        with it still, or None when there is more to come."""
        model, was_given_up = backoff.model, backoff.is_given_up
        try:
            fault = step()
        except RepositoryBusy:
            backoff.attempts -= 1
            return
        except OSError as error:
            self._hindered(backoff, str(error), str(error))
            return
        except (ServingError, ValueError) as error:
            fault = str(error)
            if want := _want(fault):
                self._hindered(backoff, want, fault)
                return
        if fault is None:
            return
        if not fault:
            self._ill.pop(model, None)
            self._tell(f"revived {model}")
            self.events.add("healed", model)
        elif backoff.give_up() and not was_given_up:
            self._report(backoff, fault)

    def _hindered(self, backoff: RestartBackoff, hindrance: str, detail: str) -> None:
        """Nothing of the model's keeps it ill: it is tried for as long as that lasts."""
        backoff.attempts -= 1
        backoff.not_before = time.monotonic() + LONGEST_PAUSE_S / 2
        if not backoff.is_given_up and backoff.hindrance != hindrance:
            self._tell(f"{backoff.model} is not healed yet: {detail}")
        backoff.hindrance = hindrance

    def _report(self, backoff: RestartBackoff, fault: str) -> None:
        self._tell(
            f"{backoff.model} cannot be healed, {backoff.attempts} attempts failed: it {fault}. It "
            f"is tried again every {LATER_S / 60:.0f} minutes, and when another version is "
            f"published (tidegate rollback {backoff.model} goes back to the one before)"
        )
        self.events.add("given_up", backoff.model, fault)

    def _patient(self, model: str) -> RestartBackoff:
        mark = self._mark(model)
        known = self._patients.get(model)
        if known is None or known.mark != mark or (known.is_well() and not known.is_given_up):
            self._patients[model] = RestartBackoff(model, mark)
        return self._patients[model]

    def _mark(self, model: str) -> int:
        path = self._server.options.repository / model / CONFIG_FILE
        try:
            return path.stat().st_mtime_ns
        except OSError:
            return 0

    @contextmanager
    def _alone(self, model: str) -> Iterator[None]:
        """A dead process is revived whatever goes on; the rest waits while somebody publishes."""
        if self._ill.get(model) == LOST_A_PROCESS:
            yield
            return
        with ExitStack() as stack:
            repository = self._server.options.repository
            try:
                stack.enter_context(publishing(repository, f"heal {model}", wait_s=0))
            except OSError as error:
                if error.errno not in _READ_ONLY:
                    raise
                # Where the lock cannot be written nobody publishes.
            yield

    def _heal(self, model: str) -> None:
        """Begin to load the model and what it pins afresh."""
        before = self._health.processes()
        hung = self._health.hung_stubs(model)
        for stub in hung:
            stub.end()  # what hangs does not end by itself, and would keep its version loaded
        self._health.forget(model)
        parts = _parts(self._server.options.repository, model)
        old = [each for each in before if each.model in parts]
        names = frozenset({model, *parts})
        self._treatments[model] = _Treatment(
            model, names, lambda: self._load_afresh(model, parts), old
        )

    def _load_afresh(self, model: str, parts: Mapping[str, Sequence[int]]) -> None:
        """In the treatment's thread."""
        with self._alone(model):
            touched = [self._load_part(each, versions) for each, versions in parts.items()]
            # Without a change on the disk the parts would be loaded once more, as they are there.
            if all(touched):
                self._server.control.load(model)

    def _healed(self, model: str, treatment: _Treatment) -> str:
        """'' when a model that was loaded is well, else what is wrong still."""
        if treatment.error is not None:
            raise treatment.error
        self._health.remember(self._server.pid)
        self._retire(treatment.old)
        self._health.forget(model)
        return self._health.fault(model)

    def _load_part(self, model: str, versions: Sequence[int]) -> bool:
        """Load what has processes of its own afresh; whether its files could be touched for it."""
        repository = self._server.options.repository
        touched = [_touch_one(repository / model / str(version)) for version in versions]
        self._server.control.load(model, afresh=not all(touched))
        return all(touched)

    def _retire(self, stubs: Sequence[Stub]) -> None:
        """These end when they are idle, as far as others of the same version have come."""
        now = self._health.processes()
        new = {(each.model, each.version) for each in now - set(stubs)}
        old = [each for each in stubs if each in now and (each.model, each.version) in new]
        self._health.retire(old)
        known = {each.stub for each in self._replaced}
        rest_s = {each.model: self._rest_s(each.model) for each in old}
        self._replaced += [_Replaced(each, rest_s[each.model]) for each in old if each not in known]

    def _rest_s(self, model: str) -> float:
        try:
            policy = self._server.control.config(model).model_transaction_policy
        except ServingError:
            return max(DECOUPLED_REST_S, self._longest_request_s)
        return max(DECOUPLED_REST_S, self._longest_request_s) if policy.decoupled else REST_S

    def _end_replaced(self) -> None:
        """End what Triton 2.51 keeps: when a process of a version has died, unloading that version
        hangs, and its other processes would stay for ever. One that still works on something (a
        long request, or what waits for it) goes on until it has done that."""
        alive = self._health.processes()
        self._replaced = [each for each in self._replaced if each.stub in alive]
        for each in self._replaced:
            if self._health.idle_s(each.stub) >= each.rest_s:
                each.stub.end()


def _want(reason: str) -> str:
    """What the machine has too little of, when that is the reason why a model does not load."""
    return next((os.strerror(each) for each in _WANTS if os.strerror(each) in reason), "")


def _parts(repository: Path, model: str) -> dict[str, list[int]]:
    """The models that have processes of their own, with the versions that serve: what an ensemble
    pins, or the model itself."""
    config = read_config(repository, model)
    pinned = pins(config)
    if not pinned:
        return {model: listed_versions(config) or [active_version(repository, model)]}
    return {each: sorted(versions) for each, versions in pinned.items()}


def _touch_one(version_folder: Path) -> bool:
    """Loading brings a dead process back only if a file of its version has changed (2.51). False
    when none can be changed, as in a repository that we may only read."""
    # Preferably not a .py: its compiled duplicate would then be written anew, which is one more
    # change.
    try:
        files = [path for path in version_folder.iterdir() if path.is_file()]
        for path in sorted(files, key=lambda path: path.suffix == ".py"):
            os.utime(path)
            return True
    except OSError:
        return False
    return False

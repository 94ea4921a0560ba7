"""Watch one Triton and heal it: restart a server that died, revive a dead process, end a process
that hangs, reload a model that fails its golden sample. What cannot be healed is reported, once."""

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
from serving.health.events import Events, unfailing
from serving.health.health import Health
from serving.health.pulse import Pulse
from serving.health.restart_backoff import (
    BUSY_PAUSE_S,
    FIRST_PAUSE_S,
    LATER_S,
    LONGEST_PAUSE_S,
    RestartBackoff,
)
from serving.health.restart_request import take
from serving.repository.configs import pins, policy_versions
from serving.repository.model_repository import ModelRepository
from serving.triton.control import READY
from serving.triton.launch import TritonServer
from serving.triton.stubs import Stub

LOST_A_PROCESS = "lost a process"
NOT_LOADED_YET = "is not loaded yet"
# After a restart the models are loaded one after the other; the others no longer wait for one that
# takes longer than this.
LOAD_TURN_S = 20.0
# How long a replaced process must have been idle before it is ended. A decoupled model may look
# idle between two responses.
REST_S, DECOUPLED_REST_S = 5.0, 30.0
# A model can be healed even if the repository is not writable.
_READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT})
# Shortages of the machine, not of the model: memory (shared memory is a disk, too), descriptors,
# processes.
_SHORTAGES = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN)


@dataclass(frozen=True)
class _Replaced:
    """A process that was replaced: it is ended once it has been idle for ``rest_s`` seconds."""

    stub: Stub
    rest_s: float


class _Reload:
    """The load of one model, in its own thread: it may take minutes, and everything else must be
    watched meanwhile. ``error`` is the exception that it ended with."""

    def __init__(
        self,
        model: str,
        names: frozenset[str],
        work: Callable[[], None],
        old: Sequence[Stub] = (),
    ) -> None:
        """``names``: the model and its members, which must not be loaded concurrently; ``old``: the
        processes that it had before."""
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

    ``models`` are those that are loaded by name; their members are watched with them, and so is
    what is published later. ``longest_request_s`` is how long a request may legitimately take.
    """

    def __init__(
        self,
        server: TritonServer,
        models: Sequence[str],
        report: Callable[[str], None],
        longest_request_s: float = 0.0,
        events: Events | None = None,
        replica: str = "",
    ) -> None:
        """``events`` and ``replica`` are for one of several servers: the log of events that their
        watchers share, and the name of this one in it and in what is reported."""
        self._server, self._models = server, list(models)
        self._repository = server.options.repository
        self._published_before = self._published()
        self._replica, prefix = replica, f"replica {replica}: " if replica else ""
        self._report = unfailing(lambda line: report(prefix + line))
        self.events = events or Events(server.options.work_dir, self._report)
        self._longest_request_s = longest_request_s
        self._health = Health(server.control, longest_request_s)
        self._health.remember(server.pid)
        self._backoffs: dict[str, RestartBackoff] = {}
        self._unhealthy: dict[str, str] = {}
        self._reloads: dict[str, _Reload] = {}
        self._ended: set[Stub] = set()
        self._replaced: list[_Replaced] = []
        self._pause_s, self._not_before = FIRST_PAUSE_S, 0.0
        self._pulse = Pulse(server.control, lambda: server.pid, self._on_pulse_event)
        self._pulse.start()

    def close(self) -> None:
        """Stop watching."""
        self._pulse.stop()

    def check(self) -> None:
        """Heal what has failed since the last call; what cannot be healed is retried after a pause.

        Never raises: everything else relies on the watcher.
        """
        self._pulse.round_began = time.monotonic()
        try:
            self.events.heartbeat()
            self._check()
        except Exception as error:
            self._not_before = time.monotonic() + LONGEST_PAUSE_S
            self._report(
                f"the watcher failed and continues in {LONGEST_PAUSE_S:g} s: "
                f"{type(error).__name__}: {error}"
            )
        finally:
            self._pulse.round_began = 0.0

    def _record(self, event: str, model: str, detail: str = "") -> None:
        self.events.add(event, model, detail, self._replica)

    def _on_pulse_event(self, event: str, detail: str) -> None:
        """Called in the pulse's thread."""
        self._report(
            f"Triton hangs ({detail}); killing it"
            if event == "triton_hung"
            else f"{event}: {detail}"
        )
        self._record(event, "", detail)

    def _check(self) -> None:
        if time.monotonic() < self._not_before:
            return
        try:
            if not self._server.is_alive():
                self._restart()
            elif take(
                self._server.options.work_dir, self._server.control.address, self._server.pid
            ):
                self._report("restarting Triton, as an operator has asked")
                self._record("restart_asked", "")
                self._start_again()
            self._end_hung()
            self._look()
        except (ServingError, OSError) as error:
            self._not_before = time.monotonic() + self._pause_s
            self._report(f"not healed yet, trying again in {self._pause_s:g} s: {error}")
            self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)
            return
        self._pause_s = FIRST_PAUSE_S
        self._end_replaced()
        for model in list({**self._unhealthy, **self._reloads}):
            self._attend(model)

    def _restart(self) -> None:
        reason = self._server.why_ended()
        self._report(f"Triton has ended{reason and f' ({reason})'}; starting it again")
        self._record("triton_died", "", reason)
        self._start_again()

    def _start_again(self) -> None:
        """Stop what is left of the server, start it, and load its models."""
        self._server.restart()
        self._reloads = {}  # they ended with their server
        self._replaced, self._ended = [], set()
        self._health.restarted(self._server.pid)
        self._models += self._published_since()
        for model in self._models:
            self._load(model)
            self._health.remember(self._server.pid)  # it may lose a process while others load
        self._report("Triton is serving again")
        self._record("triton_restarted", "")

    def _load(self, model: str) -> None:
        """Load one model. If it fails or is slow, it is marked unhealthy: the others must be served
        meanwhile."""
        try:
            if not self._repository.is_published(model):
                return
            parts = _parts(self._repository, model)
        except (ServingError, OSError, ValueError) as error:
            self._not_loaded(model, error)
            return
        reload = _Reload(
            model, frozenset({model, *parts}), lambda: self._server.control.load(model)
        )
        if not reload.is_over(LOAD_TURN_S):
            self._report(f"{model} is slow to load; the others are served meanwhile")
            self._unhealthy[model] = NOT_LOADED_YET
            self._reloads[model] = reload
        elif reload.error is not None:
            if not self._server.is_alive():
                raise reload.error
            self._not_loaded(model, reload.error)

    def _not_loaded(self, model: str, error: Exception) -> None:
        self._report(str(error))
        self._record("load_failed", model, str(error))
        self._unhealthy[model] = str(error)

    def _end_hung(self) -> None:
        """End each process that hangs, and only that one: the next look misses it and reloads its
        model."""
        for stub, how in self._health.hung().items():
            if stub in self._ended:
                continue
            self._ended.add(stub)
            self._report(f"a process of model {stub.model} ({stub.pid}) hangs: {how}; ending it")
            self._record("process_hung", stub.model, how)
            stub.end()

    def _look(self) -> None:
        """Note which models are unhealthy now."""
        reloading = self._reloading()
        for model in self._health.dead_models(self._server.pid or 0):
            if model not in reloading and self._unhealthy.get(model) != LOST_A_PROCESS:
                self._unhealthy[model] = LOST_A_PROCESS
                self._report(f"a process of model {model} died; reviving it")
                self._record("process_died", model)
        if self._health.is_time_to_probe():
            self._models = self._watched()
            self._health.probe([name for name in self._models if not self._names(name) & reloading])
        for model, fault in self._health.verdicts().items():
            if model not in reloading:
                self._note(model, fault)

    def _note(self, model: str, fault: str) -> None:
        """Note the verdict of a model's golden sample; '' if it is healthy."""
        if fault and self._unhealthy.get(model) != LOST_A_PROCESS:
            if model not in self._unhealthy:
                self._report(f"{model} {fault}")
                self._record("probe_failed", model, fault)
            self._unhealthy[model] = fault
        # A model without a golden sample passes every probe, even if it has lost a process.
        elif not fault and self._unhealthy.get(model, LOST_A_PROCESS) != LOST_A_PROCESS:
            self._recovered(model)
            self._record("recovered", model)

    def _recovered(self, model: str) -> None:
        self._unhealthy.pop(model, None)
        if model in self._backoffs:
            self._backoffs[model].recovered()

    def _watched(self) -> list[str]:
        """The initial models that are still there, and what has been published since."""
        ready = {model.name for model in self._server.control.index() if model.state == READY}
        try:
            public = set(self._repository.public_models()) & ready
            known = [model for model in self._models if self._repository.is_published(model)]
        except (ModelLoadFailed, OSError, ValueError):  # it is being edited, or cannot be read
            return self._models
        return [*known, *sorted(public - set(known))]

    def _published(self) -> dict[str, int] | None:
        """The public models and the marks of their configs; None if that cannot be read now."""
        try:
            return {model: self._mark(model) for model in self._repository.public_models()}
        except (ModelLoadFailed, OSError, ValueError):
            return None

    def _published_since(self) -> list[str]:
        """What has been published since we began to watch, and was never seen to be served: the
        server may have died right after it. Publishers load what they publish."""
        before, now = self._published_before, self._published()
        if before is None or now is None:
            return []
        return [
            model
            for model, mark in now.items()
            if model not in self._models and before.get(model) != mark
        ]

    def _reloading(self) -> set[str]:
        """The models that are being loaded: they are checked when that is over."""
        return {name for reload in self._reloads.values() for name in reload.names}

    def _names(self, model: str) -> set[str]:
        """The model and its members, as far as the config can be read."""
        try:
            return {model, *_parts(self._repository, model)}
        except (ServingError, OSError, ValueError):
            return {model}

    def _attend(self, model: str) -> None:
        """Begin to reload an unhealthy model if that is due, or check how its reload went."""
        backoff = self._backoff(model)
        reload = self._reloads.get(model)
        if reload is not None:
            if reload.is_over():
                del self._reloads[model]
                self._advance(backoff, lambda: self._finish_reload(model, reload))
        elif backoff.is_due() and not self._names(model) & self._reloading():
            backoff.begin()
            self._advance(backoff, lambda: self._begin_reload(model))

    def _advance(self, backoff: RestartBackoff, step: Callable[[], str | None]) -> None:
        """Take one step of a reload. ``step`` returns '' if the model is healthy, what is still
        wrong with it, or None if the reload goes on."""
        model, was_given_up = backoff.model, backoff.is_given_up
        try:
            fault = step()
        except RepositoryBusy:
            backoff.put_off(BUSY_PAUSE_S)
            return
        except OSError as error:
            self._postpone(backoff, str(error), str(error))
            return
        except (ServingError, ValueError) as error:
            fault = str(error)
            if shortage := _shortage(fault):
                self._postpone(backoff, shortage, fault)
                return
        if fault is None:
            return
        if not fault:
            self._recovered(model)
            self._report(f"revived {model}")
            self._record("healed", model)
        elif backoff.fail() and not was_given_up:
            self._report_given_up(backoff, fault)

    def _postpone(self, backoff: RestartBackoff, hindrance: str, detail: str) -> None:
        """The model is not the cause: retry for as long as it lasts, without counting attempts."""
        backoff.put_off(LONGEST_PAUSE_S / 2)
        if not backoff.is_given_up and backoff.hindrance != hindrance:
            self._report(f"{backoff.model} is not healed yet: {detail}")
        backoff.hindrance = hindrance

    def _report_given_up(self, backoff: RestartBackoff, fault: str) -> None:
        self._report(
            f"{backoff.model} cannot be healed, {backoff.attempts} attempts failed: it {fault}. It "
            f"is retried every {LATER_S / 60:.0f} minutes, and when another version is published "
            f"(tidegate rollback {backoff.model} goes back to the previous one)"
        )
        self._record("given_up", backoff.model, fault)

    def _backoff(self, model: str) -> RestartBackoff:
        """That of a model that is unhealthy now."""
        mark = self._mark(model)
        known = self._backoffs.get(model)
        if known is None or known.mark != mark or known.is_well():
            self._backoffs[model] = RestartBackoff(model, mark)
        self._backoffs[model].healthy_since = None
        return self._backoffs[model]

    def _mark(self, model: str) -> int:
        path = self._repository.folder(model) / CONFIG_FILE
        try:
            return path.stat().st_mtime_ns
        except OSError:
            return 0

    @contextmanager
    def _undisturbed(self, model: str) -> Iterator[None]:
        """A dead process is revived at any time; everything else waits for a publication to end."""
        if self._unhealthy.get(model) == LOST_A_PROCESS:
            yield
            return
        with ExitStack() as stack:
            try:
                stack.enter_context(self._repository.lock(f"heal {model}", wait_s=0))
            except OSError as error:
                if error.errno not in _READ_ONLY:
                    raise
                # If the lock file is not writable, nothing can be published either.
            yield

    def _begin_reload(self, model: str) -> None:
        """Begin to reload the model and its members."""
        before = self._health.processes()
        hung = self._health.hung_stubs(model)
        for stub in hung:
            stub.end()  # it does not end by itself, and would keep its version loaded
        self._health.forget(model)
        parts = _parts(self._repository, model)
        old = [stub for stub in before if stub.model in parts]
        names = frozenset({model, *parts})
        self._reloads[model] = _Reload(model, names, lambda: self._reload(model, parts), old)

    def _reload(self, model: str, parts: Mapping[str, Sequence[int]]) -> None:
        """Runs in the reload's thread."""
        with self._undisturbed(model):
            touched = [self._reload_part(part, versions) for part, versions in parts.items()]
            # If no file was touched, this would load the parts once more, with the config on disk.
            if all(touched):
                self._server.control.load(model)

    def _finish_reload(self, model: str, reload: _Reload) -> str:
        """'' if the reloaded model is healthy, else what is still wrong."""
        if reload.error is not None:
            raise reload.error
        self._health.remember(self._server.pid)
        self._retire(reload.old)
        self._health.forget(model)
        return self._health.fault(model)

    def _reload_part(self, model: str, versions: Sequence[int]) -> bool:
        """Reload a model that has processes of its own; whether its files could be touched."""
        touched = [
            _touch_a_file(self._repository.version_folder(model, version)) for version in versions
        ]
        self._server.control.load(model, afresh=not all(touched))
        return all(touched)

    def _retire(self, stubs: Sequence[Stub]) -> None:
        """Have these end once they are idle, if others of the same version have replaced them."""
        now = self._health.processes()
        new = {(stub.model, stub.version) for stub in now - set(stubs)}
        old = [stub for stub in stubs if stub in now and (stub.model, stub.version) in new]
        self._health.retire(old)
        known = {replaced.stub for replaced in self._replaced}
        rest_s = {model: self._rest_s(model) for model in {stub.model for stub in old}}
        self._replaced += [_Replaced(stub, rest_s[stub.model]) for stub in old if stub not in known]

    def _rest_s(self, model: str) -> float:
        try:
            policy = self._server.control.config(model).model_transaction_policy
        except ServingError:
            return max(DECOUPLED_REST_S, self._longest_request_s)
        return max(DECOUPLED_REST_S, self._longest_request_s) if policy.decoupled else REST_S

    def _end_replaced(self) -> None:
        """End the processes that Triton 2.51 keeps: after a process of a version has died,
        unloading that version hangs, and its other processes would stay forever. One that still has
        work (a long request, or a queue) may finish it first."""
        alive = self._health.processes()
        self._replaced = [replaced for replaced in self._replaced if replaced.stub in alive]
        for replaced in self._replaced:
            if self._health.idle_s(replaced.stub) >= replaced.rest_s:
                replaced.stub.end()


def _shortage(reason: str) -> str:
    """The machine's shortage that keeps the model from loading, by ``reason``; '' if it is none."""
    messages = map(os.strerror, _SHORTAGES)
    return next((message for message in messages if message in reason), "")


def _parts(repository: ModelRepository, model: str) -> dict[str, list[int]]:
    """The models that have processes of their own, with the served versions: an ensemble's members,
    or the model itself."""
    config = repository.config(model)
    pinned = pins(config)
    if not pinned:
        return {model: policy_versions(config) or [repository.active_version(model)]}
    return {member: sorted(versions) for member, versions in pinned.items()}


def _touch_a_file(version_folder: Path) -> bool:
    """Touch a file of the version: Triton 2.51 revives a dead process only if a file of its version
    has changed. False if none can be changed, as in a read-only repository."""
    # Preferably not a .py file: its .pyc would then be rewritten, which is one more change.
    try:
        files = [path for path in version_folder.iterdir() if path.is_file()]
        for path in sorted(files, key=lambda path: path.suffix == ".py"):
            os.utime(path)
            return True
    except OSError:
        return False
    return False

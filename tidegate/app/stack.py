"""The running stack: Tritons and the gateway as child processes, started, watched and stopped."""

import contextlib
import http.client
import json
import os
import shlex
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import IO

import click
import psutil

from gateway.heartbeat import SOCKET
from modelspec.address import joined, reached_at
from modelspec.golden import probe_time_s
from serving.errors import ServingError, StubCrashed
from serving.health.events import Events
from serving.health.watch import Watcher
from serving.publish.recovery import clear_up
from serving.repository.model_repository import ModelRepository
from serving.triton import leftovers
from serving.triton.children import end, start, why_ended
from serving.triton.control import LOAD_TIMEOUT_S
from serving.triton.launch import LaunchOptions, TritonServer
from serving.triton.ports import Endpoint, Ports, require_free
from serving.triton.servers import servers_of
from tidegate.app.canaries import companion_models
from tidegate.app.claim import Claim, Running
from tidegate.app.compose import COMPOSED, made_first, served_along
from tidegate.app.compose import is_current as composed_is_current
from tidegate.app.configs import AUTO, DEFAULT, automatic, config_name
from tidegate.app.direct import direct_opener
from tidegate.app.faults import require_loadable
from tidegate.app.gateway_watch import GatewayWatch
from tidegate.app.log_keeper import LogKeeper
from tidegate.app.making import Job, Making
from tidegate.app.paths import Paths
from tidegate.app.pipelines import is_current
from tidegate.app.progress import PHASE_FILE, noted_phase
from tidegate.app.signals import interrupt_on_sigterm
from tidegate.app.task_registry import KNOWN
from tidegate.app.train import RECIPES

# For the gateway to start and probe each model's golden sample for the first time.
READY_TIMEOUT_S = 60.0 + probe_time_s(None)
GATEWAY_STOP_S = 15.0  # after what its requests may take
GATEWAY_LOOK_S = 0.3
GATEWAY_PAUSE_S = 1.0  # before it is started again
DEV_KEY_NAME = "dev"
POLL_S = 0.3
STOP_WATCHING_S = 5.0  # for a check of a replica to end by itself
FAILED_S = 5.0  # the pause after a check that could not be made


KNOWLEDGE_BASE = "smart_reply"  # which is built, not converted
SERVICES = (
    "topic_classification",
    "sentiment",
    "entity_recognition",
    "text_classification",
    KNOWLEDGE_BASE,
    "customer_service",
)
# What a start without names makes if it is missing: the models that need no training, and the
# whole customer service.
DEFAULT_PIPELINES = (*KNOWN, *SERVICES)
# How what is missing is made: what that is called while it runs, and the command.
_COMMANDS = {
    **{name: ("converting", ("convert", name)) for name in KNOWN},
    **{name: ("training", ("train", name)) for name in RECIPES},
    KNOWLEDGE_BASE: ("building", ("kb", "build")),
    **{name: ("composing", ("compose", name)) for name in COMPOSED},
}


# What the startup banner suggests: model, command, route and body.
_EXAMPLES: tuple[tuple[str, str, str, Mapping[str, object]], ...] = (
    ("text_embedding", "curl -s", "text_embedding", {"text": "Where is my parcel?"}),
    (
        "text_embedding",
        "curl -s",
        "embeddings",
        {"model": "text_embedding", "input": ["I want my money back."]},
    ),
    ("customer_service", "curl -s", "customer_service", {"text": "My new laptop has no sound."}),
    (
        "topic_classification",
        "curl -s",
        "topic_classification",
        {"text": "Who wrote The Lord of the Rings?"},
    ),
    ("smart_reply", "curl -s", "smart_reply", {"text": "My laptop has no sound."}),
    (
        "chat",
        "curl -sN",
        "chat/completions",
        {
            "model": "chat",
            "stream": True,
            "temperature": 0,
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
        },
    ),
)


def _quoted(body: Mapping[str, object]) -> str:
    return shlex.quote(json.dumps(body))


@dataclass(frozen=True)
class StackOptions:
    paths: Paths
    host: str
    gateway_port: int
    grpc_port: int
    admin_port: int
    triton: Ports
    workers: int
    pipelines: tuple[str, ...]
    grpc_certificate_port: int = 0
    tls_certificate_file: str = ""
    tls_key_file: str = ""
    tls_client_ca_file: str = ""
    replicas: int = 1
    config: str = AUTO
    lint: bool = True
    load_timeout: float = LOAD_TIMEOUT_S
    gpu_metrics: bool = True
    log_bytes: int = 64 * 1024 * 1024
    log_files: int = 4
    as_json: bool = False


class Stack:
    """Call ``start``, then ``check`` often, then ``stop``; each raises ServingError with what to
    do."""

    def __init__(self, options: StackOptions, report: Callable[[str], None]) -> None:
        self.options = options
        self._print, self._is_started = report, False
        self._step, self._steps = 0, 0  # of the start: the one under way, and how many there are
        self._servers: list[TritonServer] = []
        self._events: Events | None = None
        self._watchers: list[Watcher] = []
        # Each replica but the first is watched in a thread that lives as long as the stack, since
        # what a thread starts ends with it: a restart of one delays no other.
        self._watching: list[threading.Thread] = []
        self._gateway: subprocess.Popen[bytes] | None = None
        self._gateway_watch = GatewayWatch(
            self._gateway_pid, options.workers, self._on_gateway_event
        )
        self._making = Making(self._start_making, self._look_at_making, self.report)
        self._making_steps: dict[str, str] = {}  # pipeline -> the step of the start that makes it
        self._claim: Claim | None = None
        self._log_keeper: LogKeeper | None = None
        self._deadline_s = 0.0  # of a request to the gateway
        self._drain_s = 0.0  # how long its requests may take to end
        self._gateway_log_start = 0  # the offset (bytes) at which this gateway's log begins
        self._stopping = threading.Event()
        # In its own thread, so that the gateway comes back even while Triton or a model takes long.
        self._gateway_keeper = threading.Thread(
            target=self._keep_gateway_running, name="gateway-keeper", daemon=True
        )

    def report(self, line: str) -> None:
        """Print a line: with the time once the stack has started, since it may be read days
        later."""
        self._print(f"{time.strftime('%H:%M:%S')} {line}" if self._is_started else line)

    @property
    def url(self) -> str:
        return f"{self._scheme}://{self._reached_at(self.options.gateway_port)}"

    def _reached_at(self, port: int) -> str:
        """HOST:PORT at which this machine reaches a listener of the gateway."""
        return joined(reached_at(self.options.host), port)

    @property
    def _scheme(self) -> str:
        return "https" if self.options.tls_certificate_file else "http"

    def start(self) -> None:
        """Convert, launch, load, and wait until every pipeline answers."""
        options = self.options
        self._check_settings()
        require_free(self._endpoints())
        self._claim_home()
        repository = ModelRepository(options.paths.repository)
        self._clear_up()
        missing = self._missing()
        self._steps = len(missing) + len(self._replicas()) + 1
        if options.lint:
            ready = [name for name in self._models() if name not in missing]
            require_loadable(
                repository, ready, automatic() if options.config == AUTO else options.config
            )
        self._make(missing)
        self._make_dev_key()
        config = config_name(repository, options.config, self.report)
        self._servers = [
            TritonServer(
                LaunchOptions(
                    repository,
                    options.paths.state,
                    ports,
                    config_name=config,
                    name=name,
                    load_timeout_s=options.load_timeout,
                    gpu_metrics=options.gpu_metrics,
                ),
                report=self.report,
            )
            for name, ports in self._replicas().items()
        ]
        self._log_keeper = LogKeeper(
            [self._log_file, *(server.log_file for server in self._servers)],
            options.log_bytes,
            options.log_files,
            self.report,
        )
        self._log_keeper.start()
        self._start_replicas()
        self._begin_step("starting the gateway")
        self._start_gateway()
        self._gateway_watch.start()
        self._wait_ready()
        self._gateway_keeper.start()
        self._record_ready(config or DEFAULT)
        self._warn_of_policy()
        self._is_started = True

    def _claim_home(self) -> None:
        """ServingError when another stack is running there. A full disk does not stop the start."""
        try:
            self._claim = Claim(self.options.paths.state, self._running())
        except OSError as error:
            self.report(f"tidegate status will not know of this stack: {error}")

    def _begin_step(self, text: str) -> None:
        """Say what the start does now, here and to ``tidegate status``."""
        self._step += 1
        self.report(f"{self._counted(text)} ...")
        self._record_phase(self._counted(text))

    def _counted(self, text: str) -> str:
        return f"step {self._step} of {self._steps}: {text}"

    def _record_phase(self, phase: str) -> None:
        if self._claim and self._claim.running.phase != phase:
            self._claim.running.phase = phase
            with contextlib.suppress(OSError):  # the start does not depend on it
                self._claim.write()

    def _record_ready(self, config: str) -> None:
        """From now on ``tidegate status`` reports whether the stack is healthy."""
        if self._claim:
            running = self._claim.running
            running.is_ready, running.config, running.phase = True, config, ""
            try:
                self._claim.write()
            except OSError as error:
                self.report(f"tidegate status will not know that this stack is ready: {error}")

    def _clear_up(self) -> None:
        """Clean up after killed publishers and servers, so that their leftovers are not blamed on
        the models. Launching a server repairs nothing by itself."""
        paths = self.options.paths
        leftovers.remove_orphans(paths.state / leftovers.BUILD)
        try:
            clear_up(
                ModelRepository(paths.repository),
                servers_of(paths.state, paths.repository),
                self.report,
            )
        except (ServingError, OSError) as error:
            self.report(f"the leftovers of a killed publisher were not cleaned up: {error}")

    def _warn_of_policy(self) -> None:
        """Say so if gateway.toml is invalid: the gateway then serves by the last good policy."""
        with contextlib.suppress(OSError), self._log_file.open("rb") as log:
            log.seek(self._gateway_log_start)
            for line in log.read().decode(errors="replace").splitlines():
                if line.endswith("the last good policy is in force instead"):
                    self.report(line)

    def _replicas(self) -> dict[str, Ports]:
        """The name of each Triton, which is that of its log, and its ports."""
        count, triton = self.options.replicas, self.options.triton
        return {f"triton.{k}" if k else "triton": triton.replica(k) for k in range(count)}

    def _start_replicas(self) -> None:
        """Start and load one Triton after the other, and watch them from then on."""
        self._events = Events(self.options.paths.state, self.report)
        for server in self._servers:
            address = server.control.address if len(self._servers) > 1 else ""
            self._begin_step(f"starting Triton {address}".rstrip())
            server.start()
            models = self._load(server)
            self._watchers.append(
                Watcher(server, models, self.report, self._deadline_s, self._events, address)
            )
        for watcher in self._watchers[1:]:
            thread = threading.Thread(target=self._watch, args=(watcher,), daemon=True)
            thread.start()
            self._watching.append(thread)

    def _watch(self, watcher: Watcher) -> None:
        while not self._stopping.wait(POLL_S):
            watcher.check()

    def check(self) -> None:
        """Heal whatever has died of the first Triton and its models; call it from the thread that
        called ``start``. The other replicas are watched in threads."""
        if self._watchers:
            self._watchers[0].check()

    def _keep_gateway_running(self) -> None:
        """Runs in a thread that lives as long as the stack: the gateway ends with the thread that
        started it."""
        while not self._stopping.wait(GATEWAY_LOOK_S):
            try:
                self._revive_gateway()
            except Exception as error:  # nothing may end this thread
                self.report(
                    f"the gateway could not be restarted yet: {type(error).__name__}: {error}"
                )
                self._stopping.wait(GATEWAY_PAUSE_S)

    def _revive_gateway(self) -> None:
        if self._gateway is None or self._gateway.poll() is None:
            return
        reason = self._end_reason()
        self.report(f"the gateway ended unexpectedly ({reason}); restarting it")
        self._note("gateway_died", reason)
        # Workers outlive a killed parent and hold its ports.
        for process in self._gateway_watch.family():
            with contextlib.suppress(psutil.Error):
                process.kill()
        if self._stopping.wait(GATEWAY_PAUSE_S):  # no tight loop if it cannot start
            return
        self._start_gateway(restarted=True)
        self._note("gateway_restarted")

    def _gateway_pid(self) -> int | None:
        return self._gateway.pid if self._gateway and self._gateway.poll() is None else None

    def _on_gateway_event(self, event: str, detail: str) -> None:
        """Called from the thread that watches the gateway."""
        lines = {
            "gateway_hung": f"the gateway hangs ({detail}); killing that process",
            "gateway_worker_died": f"a gateway worker ended ({detail}); another is started",
        }
        self.report(lines.get(event, f"{event}: {detail}"))
        self._note(event, detail)

    def _note(self, event: str, detail: str = "") -> None:
        if self._events:
            self._events.add(event, "", detail)

    def stop(self) -> None:
        self._stopping.set()
        if self._gateway_keeper.is_alive():
            self._gateway_keeper.join()
        self._gateway_watch.stop()
        for watcher in self._watchers:
            watcher.close()
        for child in (*self._making.processes, self._gateway):
            if child:
                end(child, self._drain_s + GATEWAY_STOP_S)
        if self._gateway:
            from gateway.metrics import clear_left

            clear_left()  # from a gateway that had to be killed
        self._stop_replicas()
        if self._log_keeper:
            self._log_keeper.stop()
        if self._claim:
            self._claim.close()

    def _stop_replicas(self) -> None:
        """Stop every Triton, together: each may take seconds to finish its requests."""
        for server in self._servers:
            server.forbid_start()  # a watcher's thread may be about to
        for thread in self._watching:
            thread.join(STOP_WATCHING_S)
        # One that is still being restarted ends there, and its thread does not try again.
        stopping = [threading.Thread(target=server.stop) for server in self._servers]
        for thread in stopping:
            thread.start()
        for thread in (*stopping, *self._watching):
            thread.join()
        for server in self._servers:
            server.stop()
            server.control.close()

    def running(self) -> Running:
        """The running stack, as ``tidegate status`` reports it."""
        return self._claim.running if self._claim else self._running()

    def startup_banner(self) -> str:
        """Where everything is, and commands that work when pasted."""
        paths = self.options.paths
        admin = self._running().admin
        key = paths.shown(paths.dev_key)
        header = f'-H "Authorization: Bearer $(cat {key})"'
        served = self._models()
        calls = [
            f"  {command} {shlex.quote(f'{self.url}/v1/{route}')} {header} -d {_quoted(body)}"
            for model, command, route, body in _EXAMPLES
            if model in served
        ]
        return "\n".join(
            [
                "",
                click.style("Tidegate is ready.", fg="green", bold=True),
                f"  gateway   {self.url}   docs {self.url}/docs",
                f"  gRPC      {self._reached_at(self.options.grpc_port)} (the same policy)",
                f"  operator  {admin}/metrics and /admin",
                *(
                    f"  Triton    grpc 127.0.0.1:{ports.grpc}   http 127.0.0.1:{ports.http}"
                    for ports in self._replicas().values()
                ),
                f"  API key   {key}",
                "Try:",
                f"  curl -s {shlex.quote(f'{self.url}/v1/models')} {header}",
                *calls,
                "Stop with Ctrl-C.",
            ]
        )

    def _endpoints(self) -> list[Endpoint]:
        """All the addresses that the stack will listen on."""
        options = self.options
        ports = {
            "gateway-port": options.gateway_port,
            "grpc-port": options.grpc_port,
            "grpc-certificate-port": options.grpc_certificate_port,
            "admin-port": options.admin_port,
        }
        gateway_endpoints = [
            Endpoint(flag, options.host, port) for flag, port in ports.items() if port
        ]
        replicas = (ports.endpoints("127.0.0.1") for ports in self._replicas().values())
        return [*gateway_endpoints, *chain.from_iterable(replicas)]

    def _running(self) -> Running:
        options, paths = self.options, self.options.paths
        logs, replicas = paths.state / "logs", self._replicas()
        return Running(
            pid=os.getpid(),
            home=str(paths.home),
            repository=str(paths.repository),
            url=self.url,
            admin=f"{self._scheme}://{self._reached_at(options.admin_port)}",
            triton=asdict(options.triton),
            workers=options.workers,
            models=self._models(),
            logs=[
                str(logs / name)
                for name in ("gateway.log", *(f"{name}.log" for name in replicas), "events.jsonl")
            ],
            replicas=[asdict(ports) for ports in replicas.values()],
            certificate_file=options.tls_certificate_file,
            grpc=self._reached_at(options.grpc_port),
        )

    def _check_settings(self) -> None:
        """Refuse settings that would stop the gateway before anything is started."""
        from gateway.settings import Settings, SettingsError

        try:
            settings = Settings.read(self._environment())
            self._deadline_s = settings.deadline_s
            self._drain_s = settings.drain_notice_s + settings.drain_limit_s
            if settings.tls_certificate_file:
                from gateway.http.tls import Tls

                Tls(settings)
        except SettingsError as error:
            raise ServingError(str(error)) from None

    def _models(self) -> list[str]:
        """The models to load by name: pipelines, and models that a user put into the repository."""
        if self.options.pipelines:
            paths = self.options.paths
            names = [
                served for name in self.options.pipelines for served in (name, *served_along(name))
            ]
            companions = companion_models(ModelRepository(paths.repository), paths.policy, names)
            return list(dict.fromkeys([*names, *companions, "identity_fp32"]))

        return list(
            dict.fromkeys(
                [
                    *DEFAULT_PIPELINES,
                    *ModelRepository(self.options.paths.repository).public_models(),
                ]
            )
        )

    def _missing(self) -> list[str]:
        """The known pipelines that must be converted first, or trained too; ServingError for an
        unknown name."""
        repository = ModelRepository(self.options.paths.repository)
        missing: list[str] = []
        for name in self._models():
            missing += [first for first in made_first(name) if not repository.is_published(first)]
            if self._is_current(name, repository):
                continue
            if name not in _COMMANDS:
                raise ServingError(
                    f"there is no model {name!r} in {repository.path.name}/ and no known pipeline "
                    f"of that name: known are {', '.join(_COMMANDS)}"
                )
            missing.append(name)
        return list(dict.fromkeys(missing))

    def _is_current(self, name: str, repository: ModelRepository) -> bool:
        if name in COMPOSED:
            return composed_is_current(name, repository)
        return is_current(name, repository) if name in KNOWN else repository.is_published(name)

    def _make(self, names: Sequence[str]) -> None:
        """Make each in its own process: torch's memory is released, and Ctrl-C ends it."""
        jobs = []
        for name in names:
            doing, command = _COMMANDS[name]
            embeds = ("text_embedding",) if name == KNOWLEDGE_BASE else ()
            jobs.append(Job(name, f"{doing} {name}", command, {*made_first(name), *embeds}))
        self._making.run(jobs)
        for job in jobs:
            self._phase_file(job).unlink(missing_ok=True)

    def _start_making(self, job: Job, log: IO[bytes] | None) -> "subprocess.Popen[bytes]":
        self._begin_step(job.doing)
        self._making_steps[job.name] = self._counted(job.doing)
        phase_file = self._phase_file(job)
        phase_file.unlink(missing_ok=True)
        if log is None and self.options.as_json:  # stdout holds one document
            log = os.fdopen(os.dup(sys.stderr.fileno()), "ab")
        environment = {**os.environ, PHASE_FILE: str(phase_file)}
        command = [sys.executable, "-m", "tidegate", *job.command]
        return start(command, environment=environment, log=log)

    def _look_at_making(self, jobs: Sequence[Job]) -> None:
        """Let ``tidegate status`` know what these do now."""
        phases = []
        for job in jobs:
            phase = noted_phase(self._phase_file(job)).removeprefix(f"{job.name}: ")
            phases.append(self._making_steps[job.name] + (f" ({phase})" if phase else ""))
        if phases:
            self._record_phase("; ".join(phases))

    def _phase_file(self, job: Job) -> Path:
        return self.options.paths.state / f"phase.{job.name}"

    def _make_dev_key(self) -> None:
        from gateway.policy.principal import ADMIN
        from modelspec.files import write_private
        from tidegate.app.key_store import KeyStore

        paths = self.options.paths
        store = KeyStore(paths.keys, paths.pepper)
        valid = {record.name for record in store.records() if not record.revoked}
        if paths.dev_key.exists() and DEV_KEY_NAME in valid:
            return
        _, key = store.create(DEV_KEY_NAME, ADMIN)
        write_private(paths.dev_key, key.encode())

    def _load(self, server: TritonServer) -> list[str]:
        """Load every model, in a second server if the first has crashed one's process."""
        models = self._models()
        try:
            try:
                self._load_each(server, models)
            except StubCrashed as error:
                self.report(f"{error}; starting Triton once more ...")
                server.stop(gently=False)
                server.start()
                self._load_each(server, models)
        except ServingError:
            server.stop(gently=False)  # nothing is served yet, and the server may hang
            raise
        return models

    def _load_each(self, server: TritonServer, models: list[str]) -> None:
        for number, model in enumerate(models, 1):
            self._record_phase(self._counted(f"loading {model} ({number} of {len(models)})"))
            server.control.load(model)
            self.report(f"  loaded {model}")

    def _start_gateway(self, *, restarted: bool = False) -> None:
        """Start the gateway. A restarted one keeps the policy that was in force; at the first start
        it reads the file as it is."""
        environment = {
            **self._environment(),
            "TIDEGATE_RESTARTED": "1" if restarted else "0",
            SOCKET: self._gateway_watch.name,
        }
        log_file = self._log_file
        self._gateway_log_start = log_file.stat().st_size if log_file.exists() else 0
        self._gateway = start(
            [sys.executable, "-m", "gateway"], environment=environment, log=self._open_log()
        )

    def _end_reason(self) -> str:
        return (
            why_ended(self._gateway, self._log_file, self._gateway_log_start)
            if self._gateway
            else ""
        )

    @property
    def _log_file(self) -> Path:
        return self.options.paths.state / "logs" / "gateway.log"

    def _open_log(self) -> IO[bytes]:
        path = self._log_file
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("ab")
        except OSError as error:
            self.report(f"the gateway's log cannot be written: {error}")
            return Path(os.devnull).open("ab")

    def _environment(self) -> dict[str, str]:
        options = self.options
        return {
            **os.environ,
            "TIDEGATE_HOST": options.host,
            "TIDEGATE_GATEWAY_PORT": str(options.gateway_port),
            "TIDEGATE_GRPC_PORT": str(options.grpc_port),
            "TIDEGATE_ADMIN_PORT": str(options.admin_port),
            "TIDEGATE_GRPC_CERTIFICATE_PORT": str(options.grpc_certificate_port),
            "TIDEGATE_TLS_CERTIFICATE_FILE": options.tls_certificate_file,
            "TIDEGATE_TLS_KEY_FILE": options.tls_key_file,
            "TIDEGATE_TLS_CLIENT_CA_FILE": options.tls_client_ca_file,
            "TIDEGATE_WORKERS": str(options.workers),
            "TIDEGATE_REPLICAS": ",".join(
                f"127.0.0.1:{ports.grpc}/{ports.http}" for ports in self._replicas().values()
            ),
            "TIDEGATE_TRITON_KEY_FILE": str(options.paths.triton_key),
            "TIDEGATE_KEYS_FILE": str(options.paths.keys),
            "TIDEGATE_PEPPER_FILE": str(options.paths.pepper),
            "TIDEGATE_POLICY_FILE": str(options.paths.policy),
            "TIDEGATE_STATE_FOLDER": str(options.paths.state),
            "TIDEGATE_PIPELINES": ",".join(self._models()),
        }

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        ready, status = False, "it did not answer"
        while time.monotonic() < deadline:
            if self._gateway and self._gateway.poll() is not None:
                raise ServingError(
                    f"the gateway ended ({self._end_reason()}); log: {self._log_file}"
                )
            ready, status = ask(f"{self.url}/readyz", self.options.tls_certificate_file)
            if ready and self._gateway_watch.is_started():
                return
            time.sleep(0.1)
        if ready:
            status = f"not all of its {self.options.workers} workers are"
        raise ServingError(f"not ready after {READY_TIMEOUT_S:.0f} s: {status}")


def ask(url: str, certificate_file: str, key: str = "") -> tuple[bool, str]:
    """Whether the gateway answers 200 at ``url``, and its response body (or the error)."""
    context = None
    if certificate_file:  # our own gateway is trusted by its certificate, whatever the name in it
        context = ssl.create_default_context(cafile=certificate_file)
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 - our own gateway
        with direct_opener(context).open(request, timeout=2) as response:
            return True, response.read().decode()
    except urllib.error.HTTPError as error:
        return False, error.read().decode()
    except (OSError, http.client.HTTPException) as error:
        return False, f"{type(error).__name__}: {error}"


def _check(stack: Stack) -> None:
    """One check; a failure must not end the watching."""
    try:
        stack.check()
    except Exception as error:
        stack.report(f"the stack could not be checked: {type(error).__name__}: {error}")
        time.sleep(FAILED_S)


def serve(stack: Stack) -> None:
    """Run the stack until a signal; whatever happens, none of it is left running."""
    interrupt_on_sigterm()
    try:
        stack.start()
        as_json = stack.options.as_json
        click.echo(json.dumps(asdict(stack.running())) if as_json else stack.startup_banner())
        while True:
            time.sleep(POLL_S)
            _check(stack)
    except KeyboardInterrupt:
        stack.report("stopping ...")
    finally:
        # A second Ctrl-C must not leave half of it running; stopping is bounded in time.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stack.stop()
    stack.report("stopped")

"""The running stack: Triton and the gateway as child processes, started, watched and stopped."""

import http.client
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import click

from serving.children import end, start
from serving.control import LOAD_TIMEOUT_S
from serving.errors import ServingError
from serving.launch import LaunchOptions, TritonServer
from serving.ports import ALL_ADDRESSES, Endpoint, Ports, require_free
from serving.recovery import clear_up
from serving.repository import is_published
from serving.servers import servers_of
from serving.variants import TUNED
from serving.watch import Watcher
from tidegate.claim import Claim, Running
from tidegate.configs import AUTO, DEFAULT, config_name
from tidegate.faults import require_loadable
from tidegate.kinds import KNOWN
from tidegate.log_keeper import LogKeeper
from tidegate.pipelines import is_current
from tidegate.places import Places

READY_TIMEOUT_S = 60.0
GATEWAY_STOP_S = 15.0
DEV_KEY_NAME = "dev"


@dataclass(frozen=True)
class StackOptions:
    places: Places
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
    config: str = AUTO
    lint: bool = True
    load_timeout: float = LOAD_TIMEOUT_S
    log_bytes: int = 64 * 1024 * 1024
    log_files: int = 4


class Stack:
    """``start``, then ``check`` often, then ``stop``; each raises ServingError with what to do."""

    def __init__(self, options: StackOptions, say: Callable[[str], None]) -> None:
        self.options, self._say = options, say
        self._server: TritonServer | None = None
        self._watcher: Watcher | None = None
        self._gateway: subprocess.Popen[bytes] | None = None
        self._converter: subprocess.Popen[bytes] | None = None
        self._claim: Claim | None = None
        self._log_keeper: LogKeeper | None = None

    @property
    def url(self) -> str:
        host = "127.0.0.1" if self.options.host in ALL_ADDRESSES else self.options.host
        host = f"[{host}]" if ":" in host else host
        return f"{self._scheme}://{host}:{self.options.gateway_port}"

    @property
    def _scheme(self) -> str:
        return "https" if self.options.tls_certificate_file else "http"

    def start(self) -> None:
        """Convert, launch, load, and wait until every pipeline answers."""
        options = self.options
        self._check_settings()
        require_free(self._endpoints())
        self._claim = Claim(options.places.state, self._running())
        repository = options.places.repository
        # What a killed publisher left is settled first: it is no fault of the models.
        clear_up(repository, servers_of(options.places.state, repository))
        missing = self._missing()
        if options.lint:
            ready = [name for name in self._wanted() if name not in missing]
            require_loadable(repository, ready, TUNED if options.config == AUTO else options.config)
        self._convert(missing)
        self._make_dev_key()
        chosen = config_name(repository, options.config, self._say)
        self._server = TritonServer(
            LaunchOptions(
                repository,
                options.places.state,
                options.triton,
                config_name=chosen,
                load_timeout_s=options.load_timeout,
                tell=self._say,
            )
        )
        self._log_keeper = LogKeeper(
            [self._gateway_log, self._server.log_file],
            options.log_bytes,
            options.log_files,
            self._say,
        )
        self._log_keeper.start()
        self._say("starting Triton ...")
        self._server.start()
        models = self._load(self._server)
        self._watcher = Watcher(self._server, models, self._say)
        self._say("starting the gateway ...")
        self._start_gateway()
        self._wait_ready()
        self._claim.running.is_ready = True
        self._claim.running.config = chosen or DEFAULT
        self._claim.write()

    def check(self) -> None:
        """Heal what has died."""
        if self._watcher:
            self._watcher.check()
        if self._gateway and self._gateway.poll() is not None:
            self._say(f"the gateway ended by itself ({self._last_words()}); starting it again")
            time.sleep(1)  # no tight loop when it cannot start
            self._start_gateway(restarted=True)

    def stop(self) -> None:
        if self._watcher:
            self._watcher.close()
        for child in (self._converter, self._gateway):
            if child:
                end(child, GATEWAY_STOP_S)
        if self._gateway:
            from gateway.shared_metrics import clear_left

            clear_left()  # of a gateway that had to be killed
        if self._server:
            self._server.stop()
        if self._log_keeper:
            self._log_keeper.stop()
        if self._claim:
            self._claim.close()

    def invitation(self) -> str:
        """What is where, and three lines that work when pasted."""
        places, triton = self.options.places, self.options.triton
        admin = self._running().admin
        key = places.shown(places.dev_key)
        header = f'-H "Authorization: Bearer $(cat {key})"'
        return "\n".join(
            [
                "",
                click.style("Tidegate is ready.", fg="green", bold=True),
                f"  gateway   {self.url}   docs {self.url}/docs",
                f"  gRPC      127.0.0.1:{self.options.grpc_port} (the same policy)",
                f"  operator  {admin}/metrics and /admin",
                f"  Triton    grpc 127.0.0.1:{triton.grpc}   http 127.0.0.1:{triton.http}",
                f"  API key   {key}",
                "Try:",
                f"""  curl -s {self.url}/v1/models {header}""",
                f"""  curl -s {self.url}/v1/text_embedding {header} """
                """-d '{"text": "Where is my parcel?"}'""",
                f"""  curl -s {self.url}/v1/embeddings {header} """
                """-d '{"model": "text_embedding", "input": ["I want my money back."]}'""",
                "Stop with Ctrl-C.",
            ]
        )

    def _endpoints(self) -> list[Endpoint]:
        """Where anything of the stack will listen."""
        options = self.options
        ports = {
            "gateway-port": options.gateway_port,
            "grpc-port": options.grpc_port,
            "grpc-certificate-port": options.grpc_certificate_port,
            "admin-port": options.admin_port,
        }
        ours = [Endpoint(flag, options.host, port) for flag, port in ports.items() if port]
        return [*ours, *options.triton.endpoints("127.0.0.1")]

    def _running(self) -> Running:
        options, places = self.options, self.options.places
        logs = places.state / "logs"
        return Running(
            pid=os.getpid(),
            home=str(places.home),
            repository=str(places.repository),
            url=self.url,
            admin=self.url.rpartition(":")[0] + f":{options.admin_port}",
            triton=asdict(options.triton),
            workers=options.workers,
            models=self._wanted(),
            logs=[str(logs / name) for name in ("gateway.log", "triton.log", "events.jsonl")],
            certificate_file=options.tls_certificate_file,
        )

    def _check_settings(self) -> None:
        """What would stop the gateway is said before anything is started."""
        from gateway.settings import Settings, SettingsError

        try:
            settings = Settings.read(self._environment())
            if settings.tls_certificate_file:
                from gateway.addons.tls import Tls

                Tls(settings)
        except SettingsError as error:
            raise ServingError(str(error)) from None

    def _wanted(self) -> list[str]:
        """The models to load by name: pipelines, and what a user has put into the repository."""
        if self.options.pipelines:
            return list(dict.fromkeys([*self.options.pipelines, "identity_fp32"]))
        from serving.repository import top_models

        return list(dict.fromkeys([*KNOWN, *top_models(self.options.places.repository)]))

    def _missing(self) -> list[str]:
        """The known pipelines that must be converted first; ServingError for what nobody knows."""
        repository = self.options.places.repository
        missing = []
        for name in self._wanted():
            if is_current(name, repository) if name in KNOWN else is_published(repository, name):
                continue
            if name not in KNOWN:
                raise ServingError(
                    f"there is no model {name!r} in {repository.name}/ and no known pipeline of "
                    f"this name: known are {', '.join(KNOWN)}"
                )
            missing.append(name)
        return missing

    def _convert(self, names: Sequence[str]) -> None:
        """Each in a process of its own: torch's memory is given back, and Ctrl-C ends it."""
        for name in names:
            self._say(f"converting {name} ...")
            self._converter = start([sys.executable, "-m", "tidegate", "convert", name])
            if self._converter.wait() != 0:
                raise ServingError(f"{name} was not converted (see above); nothing was started")

    def _make_dev_key(self) -> None:
        from gateway.identity.principal import ADMIN
        from gateway.private_file import write_private
        from tidegate.key_store import KeyStore

        places = self.options.places
        store = KeyStore(places.keys, places.pepper)
        valid = {record.name for record in store.records() if not record.revoked}
        if places.dev_key.exists() and DEV_KEY_NAME in valid:
            return
        _, key = store.create(DEV_KEY_NAME, ADMIN)
        write_private(places.dev_key, key.encode())

    def _load(self, server: TritonServer) -> list[str]:
        models = self._wanted()
        for model in models:
            try:
                server.control.load(model)
            except ServingError:
                server.stop(gently=False)  # nothing is served yet, and it may hang
                raise
            self._say(f"  loaded {model}")
        return models

    def _start_gateway(self, *, restarted: bool = False) -> None:
        """One that is started again goes on with the policy that was in force; at our own start
        the file is taken as it is."""
        environment = {**self._environment(), "TIDEGATE_RESTARTED": "1" if restarted else "0"}
        self._gateway = start(
            [sys.executable, "-m", "gateway"], environment=environment, log=self._log()
        )

    @property
    def _gateway_log(self) -> Path:
        return self.options.places.state / "logs" / "gateway.log"

    def _log(self) -> IO[bytes]:
        self._gateway_log.parent.mkdir(parents=True, exist_ok=True)
        return self._gateway_log.open("ab")

    def _last_words(self) -> str:
        """How the gateway ended, the last line of its log, and where that is."""
        code = self._gateway.returncode if self._gateway else None
        how = f"by {signal.Signals(-code).name}" if code and code < 0 else f"with code {code}"
        try:
            with self._gateway_log.open("rb") as file:
                file.seek(max(0, file.seek(0, 2) - 4096))
                lines = file.read().decode(errors="replace").split("\n")
        except OSError:
            lines = []
        said = [" ".join(line.split()) for line in lines if line.strip()]
        return f"{how}; {(said or ['it said nothing'])[-1][:300]!r} is last in {self._gateway_log}"

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
            "TIDEGATE_REPLICAS": f"127.0.0.1:{options.triton.grpc}/{options.triton.http}",
            "TIDEGATE_TRITON_KEY_FILE": str(options.places.triton_key),
            "TIDEGATE_KEYS_FILE": str(options.places.keys),
            "TIDEGATE_PEPPER_FILE": str(options.places.pepper),
            "TIDEGATE_POLICY_FILE": str(options.places.policy),
            "TIDEGATE_STATE_FOLDER": str(options.places.state),
            "TIDEGATE_PIPELINES": ",".join(self._wanted()),
        }

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        answer = "it did not answer"
        while time.monotonic() < deadline:
            if self._gateway and self._gateway.poll() is not None:
                raise ServingError(f"the gateway ended ({self._last_words()})")
            ready, answer = ask(f"{self.url}/readyz", self.options.tls_certificate_file)
            if ready:
                return
            time.sleep(0.1)
        raise ServingError(f"not ready after {READY_TIMEOUT_S:.0f} s: {answer}")


def ask(url: str, certificate_file: str, key: str = "") -> tuple[bool, str]:
    """Whether the gateway answers 200 there, and what it answers."""
    context = None
    if certificate_file:  # our own gateway is known by its very certificate, whatever name it has
        context = ssl.create_default_context(cafile=certificate_file)
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 - our own gateway
        with urllib.request.urlopen(request, timeout=2, context=context) as response:  # noqa: S310
            return True, response.read().decode()
    except urllib.error.HTTPError as error:
        return False, error.read().decode()
    except (OSError, http.client.HTTPException) as error:
        return False, f"{type(error).__name__}: {error}"

"""What is running in a home, since when, its health, and its logs."""

import contextlib
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from tidegate.app.paths import Paths

if TYPE_CHECKING:
    from serving.health.events import Event
    from tidegate.app.claim import Running
    from tidegate.app.routes_file import Share

NOT_STARTED = "has not started yet"
LISTED_EVENTS = 5
# A restart that was asked for and takes longer than this is a fault.
RESTART_S = 600.0
_ENDED, _ASKED, _BACK = ("triton_died", "triton_hung"), "restart_asked", "triton_restarted"


@dataclass(frozen=True)
class Server:
    """The state of a Triton: ``since`` is ISO 8601 in UTC, or '' if that is not known, ``detail``
    the reason, or ''."""

    state: Literal["serving", "starting", "drained", "restarting", "died", "unhealthy"]
    detail: str = ""
    since: str = ""

    @property
    def fault(self) -> str:
        """'' if it serves, or is restarted as somebody asked."""
        return str(self) if self.state in ("died", "unhealthy") else ""

    def __str__(self) -> str:
        since, detail = _clock(self.since), f" ({self.detail})" if self.detail else ""
        return {
            "serving": "answers",
            "starting": NOT_STARTED,
            "drained": "is drained: it gets no new requests while others can take them",
            "restarting": f"is being restarted since {since}, as somebody asked",
            "died": f"died at {since}{detail}, and is being started again",
            "unhealthy": self.detail,
        }[self.state]


@dataclass
class Report:
    """``watcher`` (the process of ``tidegate up``), ``gateway`` and ``triton`` are '' if healthy,
    otherwise the problem; ``replicas`` are these of each Triton, by its gRPC address, and
    ``servers`` their states. ``pipelines`` is the gateway's status of each pipeline, ``versions``
    the versions of each public model that any Triton serves, ``routes`` the canaries and shadows
    (or ``routes_fault`` why they are not known), ``events`` the last ones since the start."""

    running: "Running"
    watcher: str = ""
    gateway: str = ""
    triton: str = ""
    replicas: dict[str, str] = field(default_factory=dict)
    servers: dict[str, Server] = field(default_factory=dict)
    pipelines: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, list[int]] = field(default_factory=dict)
    routes: Sequence["Share"] = ()
    routes_fault: str = ""
    events: Sequence["Event"] = ()

    @property
    def is_healthy(self) -> bool:
        return self.running.is_ready and not (self.watcher or self.gateway or self.triton)

    @property
    def state(self) -> str:
        if not self.running.is_ready:
            return "starting"
        if self.is_healthy and any(
            server.state == "restarting" for server in self.servers.values()
        ):
            return "restarting"
        return "healthy" if self.is_healthy else "unhealthy"

    def as_dict(self) -> dict[str, object]:
        return {"state": self.state, **asdict(self)}

    def lines(self) -> Iterator[str]:
        running = self.running
        is_starting = self.state == "starting"
        colour = "green" if self.is_healthy else "yellow" if is_starting else "red"
        state = click.style(self.state, fg=colour)
        yield f"{state}, since {running.since} ({_age(running)})"
        if is_starting:
            yield f"  now         {running.phase or 'it begins'}"
        workers = f"{running.workers} gateway worker(s)"
        yield f"  process     {running.pid}, {workers}   {self.watcher}".rstrip()
        yield f"  gateway     {running.url}   {self.gateway or 'ready'}"
        yield f"  operator    {running.admin}/metrics and /admin"
        for ports in running.replicas:
            shown = "   ".join(f"{name} 127.0.0.1:{port}" for name, port in ports.items())
            yield f"  Triton      {shown}   {self.servers.get(_address(ports), '')}".rstrip()
        yield f"  repository  {running.repository} (configs: {running.config})"
        for name in sorted({*self.versions, *self.pipelines}):
            numbers = self.versions.get(name)
            versions = (
                ", ".join(map(str, sorted(numbers))) or "none"
                if numbers is not None
                else "not known"
            )
            yield f"  {name}: version {versions}   {self.pipelines.get(name, '')}".rstrip()
            yield from (f"    {_share(share)}" for share in self.routes if share.pipeline == name)
        if self.routes_fault:
            yield f"  canaries and shadows are not known: {self.routes_fault}"
        for event in self.events:
            words = (event.event, event.replica, event.model, event.detail)
            yield f"  event       {_clock(event.time)} {' '.join(filter(None, words))}"
        for log in running.logs:
            if Path(log).exists():
                yield f"  log         {log}"


@dataclass(frozen=True)
class NothingRunning:
    """Nothing runs in this home; ``served_from`` are the homes that serve its repository."""

    paths: Paths
    served_from: Sequence[str]
    is_healthy: bool = False

    def as_dict(self) -> dict[str, object]:
        document: dict[str, Any] = {"state": "stopped", "home": str(self.paths.home)}
        return {**document, "served_from": self.served_from} if self.served_from else document

    def lines(self) -> Iterator[str]:
        yield f"nothing is running in {self.paths.home}: tidegate up starts it"
        for home in self.served_from:
            hint = f"TIDEGATE_HOME={shlex.quote(home)} tidegate status"
            if home == str(self.paths.home):
                hint = "a Triton is running there, but no process that looks after it is known"
            yield f"  {self.paths.repository} is served from {home}: {hint}"


def status(paths: Paths) -> Report | NothingRunning:
    """The state of the stack of this home now."""
    from tidegate.app.claim import homes_serving, running_in

    running = running_in(paths.state)
    if running:
        return _check(paths, running)
    homes = homes_serving(paths, paths.repository)
    return NothingRunning(paths, [str(home) for home in homes])


def _check(paths: Paths, running: "Running") -> Report:
    from serving.errors import ServingError
    from serving.health.events import last_events
    from tidegate.app.routes_file import read_shares
    from tidegate.app.stack import ask

    report = Report(running, _stopped(running.pid))
    events = last_events(paths.state, datetime.fromisoformat(running.since))
    report.events = events[-LISTED_EVENTS:]
    if not running.is_ready:  # what has not started does not fail to answer
        report.gateway = report.triton = NOT_STARTED
        report.servers = {_address(ports): Server("starting") for ports in running.replicas}
        return report
    try:
        report.routes = read_shares(paths.policy)
    except (ServingError, OSError) as error:
        report.routes_fault = str(error)
    key = paths.dev_key.read_text().strip() if paths.dev_key.is_file() else ""
    ready, body = ask(f"{running.url}/readyz", running.certificate_file, key)
    try:
        document: dict[str, Any] = json.loads(body)
    except ValueError:
        report.gateway = f"does not answer ({body})"
    else:
        report.gateway = "" if ready else "is not ready"
        report.pipelines = document.get("pipelines", {})
    drained = _drained(running, key) if not report.gateway and key else set()
    _check_triton(paths, report, events, drained)
    return report


def _drained(running: "Running", key: str) -> set[str]:
    """The replicas (HOST:GRPC_PORT) to which the gateway sends no new requests; none if it does not
    say."""
    from serving.errors import ServingError
    from tidegate.app.top import Gateway

    try:
        replicas = Gateway(running.admin, key, running.certificate_file).replicas()
    except ServingError:
        return set()
    return {str(replica["address"]).partition("/")[0] for replica in replicas if replica["drained"]}


def _stopped(pid: int) -> str:
    """The problem if the process is stopped; '' if not, or if it cannot be seen from here."""
    import psutil

    with contextlib.suppress(psutil.Error):
        if psutil.Process(pid).status() == psutil.STATUS_STOPPED:
            return f"is stopped and heals nothing: kill -CONT {pid}"
    return ""


def _check_triton(
    paths: Paths, report: Report, events: Sequence["Event"], drained: set[str]
) -> None:
    running = report.running
    versions: dict[str, set[int]] = {name: set() for name in running.models}
    for ports in running.replicas:
        address = _address(ports)
        own = [event for event in events if event.replica in ("", address)]
        server = server_state(
            _check_replica(paths, report, ports, versions), own, is_drained=address in drained
        )
        report.servers[address], report.replicas[address] = server, server.fault
    report.versions = {name: sorted(numbers) for name, numbers in versions.items()}
    faults = {address: fault for address, fault in report.replicas.items() if fault}
    if len(running.replicas) > 1:
        report.triton = "; ".join(f"{address} {fault}" for address, fault in faults.items())
    else:
        report.triton = "".join(faults.values())


def server_state(
    fault: str, events: Sequence["Event"], *, is_drained: bool, now: datetime | None = None
) -> Server:
    """What to say of a Triton with this fault ('' if it serves everything), by its events, oldest
    first: a fault has a reason if it is being started again."""
    pending = None
    for event in events:
        if event.event in (*_ENDED, _ASKED, _BACK):
            pending = None if event.event == _BACK else event
    if fault and pending and pending.event in _ENDED:
        return Server("died", pending.detail, pending.time)
    if pending and pending.event == _ASKED:
        age = (now or datetime.now(UTC)) - datetime.fromisoformat(pending.time)
        if age.total_seconds() < RESTART_S:
            return Server("restarting", since=pending.time)
    if fault:
        return Server("unhealthy", fault)
    return Server("drained" if is_drained else "serving")


def _share(share: "Share") -> str:
    if share.kind == "shadow":
        return f"shadow {share.model}: copies of {share.percent:g} % of the requests"
    return f"canary {share.model}: {share.percent:g} % of the {share.per}s"


def _check_replica(
    paths: Paths, report: Report, ports: Mapping[str, int], versions: dict[str, set[int]]
) -> str:
    """'' or what is wrong with this Triton; adds what it serves to ``versions``."""
    from serving.errors import ServingError
    from serving.triton.control import READY, TritonControl, read_key

    running, address = report.running, _address(ports)
    try:
        with TritonControl(address, read_key(paths.triton_key)) as control:
            index = control.index()
    except ServingError as error:
        return str(error).removeprefix(f"Triton at {address} ")
    served: dict[str, set[int]] = {name: set() for name in running.models}
    for entry in index:
        if entry.state == READY and (entry.name in served or entry.name in report.pipelines):
            served.setdefault(entry.name, set()).add(int(entry.version))
    for name, numbers in served.items():
        versions.setdefault(name, set()).update(numbers)
    missing = [name for name, loaded in served.items() if not loaded]
    return f"does not serve {', '.join(missing)}" if missing else ""


def _address(ports: Mapping[str, int]) -> str:
    return f"127.0.0.1:{ports['grpc']}"


def _clock(time: str) -> str:
    """A time (ISO 8601) on this machine's clock, with the date unless it is today."""
    if not time:
        return ""
    local = datetime.fromisoformat(time).astimezone()
    today = datetime.now().astimezone().date()
    return f"{local:%H:%M:%S}" if local.date() == today else f"{local:%Y-%m-%d %H:%M:%S}"


def _age(running: "Running") -> str:
    age = datetime.now(UTC) - datetime.fromisoformat(running.since)
    if age.total_seconds() < 60:
        return f"{max(0.0, age.total_seconds()):.0f} s"
    minutes = int(age.total_seconds() // 60)
    days, rest = divmod(minutes, 24 * 60)
    hours, minutes = divmod(rest, 60)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"

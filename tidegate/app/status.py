"""What is running in a home, since when, its health, and its logs."""

import contextlib
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from tidegate.app.paths import Paths

if TYPE_CHECKING:
    from tidegate.app.claim import Running


@dataclass
class Report:
    """``watcher`` (the process of ``tidegate up``), ``gateway`` and ``triton`` are '' if healthy,
    otherwise the problem; ``replicas`` are these of each Triton, by its gRPC address. ``pipelines``
    is the gateway's status of each pipeline, ``versions`` the versions of each public model that
    any Triton serves."""

    running: "Running"
    watcher: str = ""
    gateway: str = ""
    triton: str = ""
    replicas: dict[str, str] = field(default_factory=dict)
    pipelines: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, list[int]] = field(default_factory=dict)

    @property
    def is_healthy(self) -> bool:
        return self.running.is_ready and not (self.watcher or self.gateway or self.triton)

    @property
    def state(self) -> str:
        if not self.running.is_ready:
            return "starting"
        return "healthy" if self.is_healthy else "unhealthy"

    def as_dict(self) -> dict[str, object]:
        return {"state": self.state, **asdict(self)}

    def lines(self) -> Iterator[str]:
        running = self.running
        state = click.style(self.state, fg="green" if self.is_healthy else "red")
        yield f"{state}, since {running.since} ({_age(running)})"
        workers = f"{running.workers} gateway worker(s)"
        yield f"  process     {running.pid}, {workers}   {self.watcher}".rstrip()
        yield f"  gateway     {running.url}   {self.gateway or 'ready'}"
        yield f"  operator    {running.admin}/metrics and /admin"
        for ports in running.replicas:
            shown = "   ".join(f"{name} 127.0.0.1:{port}" for name, port in ports.items())
            yield f"  Triton      {shown}   {self.replicas.get(_address(ports)) or 'answers'}"
        yield f"  repository  {running.repository} (configs: {running.config})"
        for name in sorted({*self.versions, *self.pipelines}):
            numbers = self.versions.get(name)
            versions = (
                ", ".join(map(str, sorted(numbers))) or "none"
                if numbers is not None
                else "not known"
            )
            yield f"  {name}: version {versions}   {self.pipelines.get(name, '')}".rstrip()
        for log in running.logs:
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
    from tidegate.app.stack import ask

    report = Report(running, _stopped(running.pid))
    key = paths.dev_key.read_text().strip() if paths.dev_key.is_file() else ""
    ready, body = ask(f"{running.url}/readyz", running.certificate_file, key)
    try:
        document: dict[str, Any] = json.loads(body)
    except ValueError:
        report.gateway = f"does not answer ({body})"
    else:
        report.gateway = "" if ready else "is not ready"
        report.pipelines = document.get("pipelines", {})
    _check_triton(paths, report)
    return report


def _stopped(pid: int) -> str:
    """The problem if the process is stopped; '' if not, or if it cannot be seen from here."""
    import psutil

    with contextlib.suppress(psutil.Error):
        if psutil.Process(pid).status() == psutil.STATUS_STOPPED:
            return f"is stopped and heals nothing: kill -CONT {pid}"
    return ""


def _check_triton(paths: Paths, report: Report) -> None:
    running = report.running
    versions: dict[str, set[int]] = {name: set() for name in running.models}
    for ports in running.replicas:
        report.replicas[_address(ports)] = _check_replica(paths, report, ports, versions)
    report.versions = {name: sorted(numbers) for name, numbers in versions.items()}
    faults = {address: fault for address, fault in report.replicas.items() if fault}
    if len(running.replicas) > 1:
        report.triton = "; ".join(f"{address} {fault}" for address, fault in faults.items())
    else:
        report.triton = "".join(faults.values())


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
    return f"does not serve {', '.join(missing)}" if missing and running.is_ready else ""


def _address(ports: Mapping[str, int]) -> str:
    return f"127.0.0.1:{ports['grpc']}"


def _age(running: "Running") -> str:
    minutes = int((datetime.now(UTC) - datetime.fromisoformat(running.since)).total_seconds() // 60)
    days, rest = divmod(minutes, 24 * 60)
    hours, minutes = divmod(rest, 60)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes} min"

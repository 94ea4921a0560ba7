"""``tidegate status``: what is running in this home, since when, its health, and its logs."""

import contextlib
import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tidegate.app.paths import Paths, json_option, print_json

if TYPE_CHECKING:
    from tidegate.app.claim import Running

WELL, NOT_WELL, NOTHING = 0, 1, 3


@dataclass
class Report:
    """``watcher`` (the process of ``tidegate up``), ``gateway`` and ``triton`` are '' if healthy,
    otherwise the problem; ``pipelines`` is the gateway's status of each pipeline, ``versions`` the
    versions that Triton serves of each public model."""

    running: "Running"
    watcher: str = ""
    gateway: str = ""
    triton: str = ""
    pipelines: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, list[int]] = field(default_factory=dict)

    @property
    def is_well(self) -> bool:
        return self.running.is_ready and not (self.watcher or self.gateway or self.triton)

    @property
    def state(self) -> str:
        if not self.running.is_ready:
            return "starting"
        return "well" if self.is_well else "not well"


@click.command("status")
@json_option
@click.option(
    "--repository",
    type=click.Path(file_okay=False, path_type=Path),
    help="Show the stack that serves this repository, whichever home it runs from. Default: the "
    "stack of this home.",
)
def command(as_json: bool, repository: Path | None) -> None:
    """Show what is running in this home (TIDEGATE_HOME, else this folder): the gateway, Triton, the
    pipelines with the versions that are served, since when, and where the logs are.

    Exit codes: 0 all is well; 1 it runs but is not well, or is still starting; 3 nothing is
    running.

    \b
    tidegate status
    tidegate status --json
    """
    from tidegate.app.claim import home_serving, running_in

    paths = Paths.current()
    if repository:
        paths = Paths(home_serving(paths, repository.resolve()))
    running = running_in(paths.state)
    if running is None:
        _print_nothing_runs(paths, as_json=as_json)
        sys.exit(NOTHING)
    report = _check(paths, running)
    if as_json:
        print_json({"state": report.state, **asdict(report)})
    else:
        _print(report)
    sys.exit(WELL if report.is_well else NOT_WELL)


def _print_nothing_runs(paths: Paths, *, as_json: bool) -> None:
    """Say that nothing runs in this home, and from which homes its repository is served instead."""
    from tidegate.app.claim import homes_serving

    others = [str(home) for home in homes_serving(paths, paths.repository)]
    if as_json:
        document = {"state": "stopped", "home": str(paths.home)}
        print_json({**document, "served_from": others} if others else document)
        return
    click.echo(f"nothing is running in {paths.home}: tidegate up starts it")
    for home in others:
        hint = f"TIDEGATE_HOME={shlex.quote(home)} tidegate status"
        if home == str(paths.home):
            hint = "a Triton is running there, but no process that looks after it is known"
        click.echo(f"  {paths.repository} is served from {home}: {hint}")


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
    from serving.errors import ServingError
    from serving.publish.replica import READY
    from serving.triton.control import TritonControl, read_key

    running = report.running
    try:
        key = read_key(paths.triton_key)
        with TritonControl(f"127.0.0.1:{running.triton['grpc']}", key) as control:
            index = control.index()
    except ServingError as error:
        report.triton = str(error).removeprefix(f"Triton at 127.0.0.1:{running.triton['grpc']} ")
        return
    versions: dict[str, list[int]] = {name: [] for name in running.models}
    for entry in index:
        if entry.state == READY and (entry.name in versions or entry.name in report.pipelines):
            versions.setdefault(entry.name, []).append(int(entry.version))
    report.versions = versions
    missing = [name for name, loaded in versions.items() if not loaded]
    if missing and running.is_ready:
        report.triton = f"does not serve {', '.join(missing)}"


def _print(report: Report) -> None:
    running = report.running
    colour = "green" if report.is_well else "red"
    click.echo(f"{click.style(report.state, fg=colour)}, since {running.since} ({_age(running)})")
    workers = f"{running.workers} gateway worker(s)"
    click.echo(f"  process     {running.pid}, {workers}   {report.watcher}".rstrip())
    click.echo(f"  gateway     {running.url}   {report.gateway or 'ready'}")
    click.echo(f"  operator    {running.admin}/metrics and /admin")
    ports = "   ".join(f"{name} 127.0.0.1:{port}" for name, port in running.triton.items())
    click.echo(f"  Triton      {ports}   {report.triton or 'answers'}")
    click.echo(f"  repository  {running.repository} (configs: {running.config})")
    for name in sorted({*report.versions, *report.pipelines}):
        numbers = report.versions.get(name)
        versions = (
            ", ".join(map(str, sorted(numbers))) or "none" if numbers is not None else "not known"
        )
        click.echo(f"  {name}: version {versions}   {report.pipelines.get(name, '')}".rstrip())
    for log in running.logs:
        click.echo(f"  log         {log}")


def _age(running: "Running") -> str:
    minutes = int((datetime.now(UTC) - datetime.fromisoformat(running.since)).total_seconds() // 60)
    days, rest = divmod(minutes, 24 * 60)
    hours, minutes = divmod(rest, 60)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes} min"

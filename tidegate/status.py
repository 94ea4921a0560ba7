"""``tidegate status``: what runs in this home, since when, how it is, and where the logs are."""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from tidegate.places import Places

if TYPE_CHECKING:
    from tidegate.claim import Running

WELL, NOT_WELL, NOTHING = 0, 1, 3


@dataclass
class Report:
    """What was found. ``gateway`` and ``triton`` are '' when well, else what is wrong;
    ``pipelines`` is what the gateway says of each, ``versions`` what Triton serves of each model
    that is called by name."""

    running: "Running"
    gateway: str = ""
    triton: str = ""
    pipelines: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, list[int]] = field(default_factory=dict)

    @property
    def is_well(self) -> bool:
        return self.running.is_ready and not self.gateway and not self.triton

    @property
    def state(self) -> str:
        if not self.running.is_ready:
            return "starting"
        return "well" if self.is_well else "not well"


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """Show what runs in this home (TIDEGATE_HOME, else this folder): the gateway, Triton, the
    pipelines with the versions that are served, since when, and where the logs are.

    Exit codes: 0 all is well; 1 it runs and is not well, or is still starting; 3 nothing runs here.

    \b
    tidegate status
    tidegate status --json
    """
    from tidegate.claim import running_in

    places = Places.current()
    running = running_in(places.state)
    if running is None:
        text = f"nothing runs in {places.home}: tidegate up starts it"
        click.echo(json.dumps({"state": "stopped", "home": str(places.home)}) if as_json else text)
        sys.exit(NOTHING)
    report = _look(places, running)
    if as_json:
        click.echo(json.dumps({"state": report.state, **asdict(report)}, indent=2))
    else:
        _print(report)
    sys.exit(WELL if report.is_well else NOT_WELL)


def _look(places: Places, running: "Running") -> Report:
    from tidegate.stack import ask

    report = Report(running)
    key = places.dev_key.read_text().strip() if places.dev_key.is_file() else ""
    ready, answer = ask(f"{running.url}/readyz", running.certificate_file, key)
    try:
        told: dict[str, Any] = json.loads(answer)
    except ValueError:
        report.gateway = f"does not answer ({answer})"
    else:
        report.gateway = "" if ready else "is not ready"
        report.pipelines = told.get("pipelines", {})
    _look_at_triton(places, report)
    return report


def _look_at_triton(places: Places, report: Report) -> None:
    from serving.control import TritonControl, read_key
    from serving.errors import ServingError
    from serving.replica import READY

    running = report.running
    try:
        key = read_key(places.triton_key)
        with TritonControl(f"127.0.0.1:{running.triton['grpc']}", key) as control:
            index = control.index()
    except ServingError as error:
        report.triton = str(error).removeprefix("Triton ")
        return
    found: dict[str, list[int]] = {name: [] for name in running.models}
    for each in index:
        if each.state == READY and (each.name in found or each.name in report.pipelines):
            found.setdefault(each.name, []).append(int(each.version))
    report.versions = found
    lacking = [name for name, versions in found.items() if not versions]
    if lacking and running.is_ready:
        report.triton = f"does not serve {', '.join(lacking)}"


def _print(report: Report) -> None:
    running = report.running
    well = "green" if report.is_well else "red"
    click.echo(f"{click.style(report.state, fg=well)}, since {running.since} ({_age(running)})")
    click.echo(f"  process     {running.pid}, {running.workers} gateway worker(s)")
    click.echo(f"  gateway     {running.url}   {report.gateway or 'ready'}")
    click.echo(f"  operator    {running.admin}/metrics and /admin")
    ports = "   ".join(f"{name} 127.0.0.1:{port}" for name, port in running.triton.items())
    click.echo(f"  Triton      {ports}   {report.triton or 'answers'}")
    click.echo(f"  repository  {running.repository} (configs: {running.config})")
    for name in sorted({*report.versions, *report.pipelines}):
        versions = ", ".join(map(str, sorted(report.versions.get(name, [])))) or "none"
        click.echo(f"  {name}: version {versions}   {report.pipelines.get(name, '')}".rstrip())
    for log in running.logs:
        click.echo(f"  log         {log}")


def _age(running: "Running") -> str:
    minutes = int((datetime.now(UTC) - datetime.fromisoformat(running.since)).total_seconds() // 60)
    days, rest = divmod(minutes, 24 * 60)
    hours, minutes = divmod(rest, 60)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes} min"

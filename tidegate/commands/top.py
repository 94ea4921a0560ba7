"""``tidegate top``: replicas, models, rates and latencies of a running gateway, live."""

import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from tidegate.app.paths import Paths
from tidegate.app.signals import interrupt_on_sigterm
from tidegate.commands.options import Duration, json_option, stack_option
from tidegate.commands.output import WIDTH, print_json

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

    from tidegate.app.top import Gateway, View


@click.command("top", short_help="Replicas, models, rates and latencies, live")
@click.option(
    "--url",
    help="The gateway's operator's listener. Default: that of the stack running here.",
)
@click.option(
    "--interval",
    type=Duration(),
    default="2s",
    show_default=True,
    help="How often it looks; rates and latencies are of this time.",
)
@click.option("--once", is_flag=True, help="Print one view and end; so it does without a terminal.")
@json_option
@stack_option
def command(url: str | None, interval: timedelta, once: bool, as_json: bool) -> None:
    """Show the replicas (health, requests and tokens under way, ejections) and models (requests a
    second, latencies, errors, tokens) of a running gateway until Ctrl-C.

    Latencies are estimated from the buckets of the gateway's histograms, as Prometheus does. The
    key is TIDEGATE_API_KEY, else the dev key; it needs a role with the action admin.

    --json: gateway, seconds, requests_per_s, replicas (address, health, inflight, tokens, ejected,
    probes, drained, leaving, reason) and models (name, requests_per_s, p50_ms, p95_ms, errors,
    refused, first_token_p50_ms, tokens_per_s, probe).

    \b
    tidegate top
    tidegate top --once
    tidegate top --json --interval 10s
    """
    from rich.console import Console

    from tidegate.app.top import Gateway, views

    interrupt_on_sigterm()
    gateway = Gateway.of(Paths.current(), url)
    interval_s = interval.total_seconds()
    is_terminal = sys.stdout.isatty()
    if is_terminal and not once and not as_json:
        _live(gateway, interval_s)
        return
    view = next(views(gateway, interval_s))
    if as_json:
        print_json(view.as_dict())
        return
    console = Console(
        file=sys.stdout, width=None if is_terminal else WIDTH, force_terminal=is_terminal
    )
    _print(console, view)


def _print(console: "Console", view: "View") -> None:
    with console.capture() as capture:
        console.print(rendered(view))
    for line in capture.get().splitlines():
        click.echo(line.rstrip())


def _live(gateway: "Gateway", interval_s: float) -> None:
    """Until Ctrl-C. A gateway that does not answer is asked again: it may be restarting."""
    from rich.live import Live
    from rich.text import Text

    from serving.errors import ServingError
    from tidegate.app.top import views

    with Live(Text("looking ..."), screen=True, auto_refresh=False) as live:
        while True:
            try:
                for view in views(gateway, interval_s):
                    live.update(rendered(view), refresh=True)
            except ServingError as error:
                live.update(Text(str(error), style="red"), refresh=True)
                time.sleep(interval_s)


def rendered(view: "View") -> "RenderableType":
    """The view as two tables under a heading."""
    from rich.console import Group
    from rich.text import Text

    heading = f"{view.gateway}   {view.requests_per_s:.1f} requests/s in {view.seconds:.1f} s"
    return Group(Text(heading, style="bold"), Text(), _replicas(view), Text(), _models(view))


def _replicas(view: "View") -> "RenderableType":
    from rich.text import Text

    table = _table(
        *("replica", "health", "under way", "tokens"),
        *("ejected for", "wrong for", "why it gets no requests"),
    )
    styles = {"up": "green", "unknown": "yellow", "down": "red"}
    for replica in view.replicas:
        ejected = ", ".join(
            f"{model} ({seconds:.0f} s)" if seconds else f"{model} (on trial)"
            for model, seconds in sorted(replica.ejected.items())
        )
        notes = {"drained": replica.drained, "leaving": replica.leaving}
        state = ", ".join((replica.health, *(note for note, holds in notes.items() if holds)))
        table.add_row(
            Text(replica.address),
            Text(state, style=styles.get(replica.health, "")),
            Text(str(replica.inflight)),
            Text(str(replica.tokens)),
            Text(ejected, style="red"),
            Text(", ".join(sorted(replica.probes)), style="red"),
            Text(replica.reason, style="red"),
        )
    return table


def _models(view: "View") -> "RenderableType":
    from rich.text import Text

    has_streams = any(
        value is not None
        for model in view.models
        for value in (model.first_token_p50_ms, model.tokens_per_s)
    )
    of_streams = ("first token p50 ms", "tokens/s") if has_streams else ()
    table = _table(
        *("model", "requests/s", "p50 ms", "p95 ms", "failed", "refused"),
        *(*of_streams, "golden sample"),
    )
    for model in view.models:
        streams = (_number(model.first_token_p50_ms), _number(model.tokens_per_s))
        table.add_row(
            Text(model.name),
            Text(f"{model.requests_per_s:.1f}"),
            _number(model.p50_ms),
            _number(model.p95_ms),
            _percent(model.errors, "red"),
            _percent(model.refused, "yellow"),
            *(streams if has_streams else ()),
            Text(model.probe or "right", style="red" if model.probe else "green"),
        )
    return table


def _table(*headings: str) -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _number(value: float | None) -> "RenderableType":
    return "-" if value is None else f"{value:.1f}"


def _percent(share: float | None, style: str) -> "RenderableType":
    from rich.text import Text

    if share is None:
        return "-"
    return Text(f"{share:.1%}", style=style if share else "")

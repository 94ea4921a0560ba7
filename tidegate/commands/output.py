"""What the verbs print: one JSON document, tables, and the progress of what takes long. Colour and
live progress appear only on a terminal; a file or a pipe gets plain lines."""

import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from tidegate.app.progress import Progress, note_phase

if TYPE_CHECKING:
    from tidegate.app.rollout import Outcome

REPEAT_S = 10.0
WIDTH = 1000  # of what is not a terminal: nothing is wrapped or cut


def print_json(document: Any) -> None:
    """Print the one document that a verb with ``--json`` writes to stdout."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))


def print_outcomes(outcomes: Iterable["Outcome"], *, as_json: bool) -> None:
    """Print what became of each repository: one list, or a line each as soon as it is known."""
    if as_json:
        print_json([outcome.as_dict() for outcome in outcomes])
        return
    for outcome in outcomes:
        click.echo(outcome.line())


@contextlib.contextmanager
def progress(*, err: bool = False) -> Iterator[Progress]:
    """A function that prints each step with the seconds since the start; on stderr with ``err``.

    On a terminal the step under way is the last line, with a clock, until the next one begins.
    Elsewhere it is printed again every ``REPEAT_S`` seconds.
    """
    started = time.monotonic()
    stream = sys.stderr if err else sys.stdout
    if not stream.isatty():
        lines = _PlainLines(started, err=err)
        try:
            yield lines.report
        finally:
            lines.close()
        return
    from rich.console import Console
    from rich.progress import Progress as LiveProgress
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(file=stream, highlight=False)
    columns = (SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    begun = ""  # the step under way
    with LiveProgress(*columns, console=console, transient=True) as live:
        step = live.add_task("", total=None)

        def report(text: str) -> None:
            nonlocal begun
            if begun:
                console.print(begun, markup=False, soft_wrap=True)
            begun = f"[{time.monotonic() - started:5.1f} s] {text}"
            note_phase(text)
            live.reset(step, description=text)

        try:
            yield report
        finally:
            if begun:
                console.print(begun, markup=False, soft_wrap=True)


class _PlainLines:
    """Steps as lines. The step under way is repeated, so that a log shows that work goes on."""

    def __init__(self, started: float, *, err: bool, repeat_s: float = REPEAT_S) -> None:
        self._started, self._err, self._repeat_s = started, err, repeat_s
        self._step, self._begun = "", started
        self._printing = threading.Condition()
        self._is_closed = False
        self._repeater: threading.Thread | None = None

    def report(self, text: str) -> None:
        with self._printing:
            self._step, self._begun = text, time.monotonic()
            note_phase(text)
            self._print(text)
            self._printing.notify()
            if self._repeater is None:
                self._repeater = threading.Thread(target=self._repeat, daemon=True)
                self._repeater.start()

    def close(self) -> None:
        with self._printing:
            self._is_closed = True
            self._printing.notify()
        if self._repeater:
            self._repeater.join()

    def _repeat(self) -> None:
        with self._printing:
            while not self._is_closed:
                if not self._printing.wait(self._repeat_s):
                    age = time.monotonic() - self._begun
                    self._print(f"{self._step} (for {age:.0f} s now)")

    def _print(self, text: str) -> None:
        elapsed = time.monotonic() - self._started
        click.echo(f"[{elapsed:5.1f} s] {text}", err=self._err)


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print the rows in columns under their headings; cells may carry ``click.style``."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text.from_ansi(cell) for cell in row))
    is_terminal = sys.stdout.isatty()
    console = Console(
        file=sys.stdout, width=None if is_terminal else WIDTH, force_terminal=is_terminal
    )
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        click.echo(line.rstrip())

"""Tables and floors -> markdown to read, JSON to keep."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Protocol

from loadtests.bench.passes import Ratio, Rounds
from loadtests.bench.wrk import Figures


class TableRow(Protocol):
    """A line of a table; a dataclass, which is saved as it is. The first two cells are text."""

    COLUMNS: ClassVar[tuple[str, ...]]

    def cells(self) -> list[str]: ...


@dataclass(frozen=True)
class Row:
    """``throughput`` and ``efficiency`` (requests per second of CPU) are relative to the
    reference's, 1 for the reference itself."""

    COLUMNS: ClassVar[tuple[str, ...]] = (
        *("what", "load", "requests/s", "ratio", "band", "p50 ms", "p95 ms", "p99 ms"),
        *("CPU us", "per CPU", "of which"),
    )

    name: str
    setting: str
    figures: Figures
    throughput: Ratio
    efficiency: Ratio | None

    def cells(self) -> list[str]:
        figures, ratio = self.figures, self.throughput
        times = (figures.p50_ms, figures.p95_ms, figures.p99_ms)
        return [
            self.name,
            self.setting,
            f"{figures.rps:,.0f}",
            f"{ratio.median:.2f}",
            f"{ratio.low:.2f}-{ratio.high:.2f}",
            *(f"{time_ms:.2f}" for time_ms in times),
            f"{figures.total_cpu_us:,.0f}" if figures.cpu_us else "",
            f"{self.efficiency.median:.2f}" if self.efficiency else "",
            by_process(figures.cpu_us),
        ]


class Verdict(Enum):
    HELD = "held"
    MISSED = "MISSED"
    UNCLEAR = "too noisy to judge"


@dataclass(frozen=True)
class Floor:
    """The minimum that a ratio must reach. Held or missed if its whole noise band says so."""

    what: str
    actual: Ratio
    required: float

    @property
    def verdict(self) -> Verdict:
        if self.actual.low >= self.required:
            return Verdict.HELD
        return Verdict.MISSED if self.actual.high < self.required else Verdict.UNCLEAR


@dataclass(frozen=True)
class Section:
    title: str
    rows: Sequence[TableRow]
    floors: Sequence[Floor] = ()
    notes: Sequence[str] = field(default_factory=tuple)


def rows(rounds: Rounds, reference: str, setting: str) -> list[Row]:
    return [
        Row(
            name,
            setting,
            rounds.median(name),
            rounds.throughput(name, reference),
            rounds.efficiency(name, reference),
        )
        for name in rounds.figures
    ]


def floors_with(verdict: Verdict, sections: Sequence[Section]) -> list[Floor]:
    return [f for section in sections for f in section.floors if f.verdict is verdict]


def markdown(machine: Mapping[str, Any], sections: Sequence[Section]) -> str:
    lines = [", ".join(f"{key}: {value}" for key, value in machine.items()), ""]
    for section in sections:
        lines += _section(section)
    return "\n".join(lines)


def _section(section: Section) -> list[str]:
    lines = [f"## {section.title}", ""]
    if section.rows:
        columns = section.rows[0].COLUMNS
        lines += [_line(columns), "|---|---|" + "---:|" * (len(columns) - 3) + "---|"]
        lines += [_line(row.cells()) for row in section.rows]
        lines.append("")
    return [
        *lines,
        *(f"- {note}" for note in section.notes),
        *(_floor(floor) for floor in section.floors),
        "",
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def by_process(cpu_us: Mapping[str, float]) -> str:
    """Who used the CPU, the most first; what is under a microsecond is left out."""
    ordered = sorted(cpu_us.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {used:,.0f}" for name, used in ordered if used >= 1)


def _floor(floor: Floor) -> str:
    ratio, word = floor.actual, floor.verdict.value
    return (
        f"- floor {word}: {floor.what}: {ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f}), "
        f"at least {floor.required:.2f}"
    )


def save(folder: Path, name: str, machine: Mapping[str, Any], sections: Sequence[Section]) -> Path:
    """Write ``NAME.md`` and ``NAME.json``; returns the latter's path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(markdown(machine, sections) + "\n", encoding="utf-8")
    file = folder / f"{name}.json"
    file.write_text(as_json(machine, sections), encoding="utf-8")
    return file


def as_json(machine: Mapping[str, Any], sections: Sequence[Section]) -> str:
    document = {"machine": dict(machine), "sections": [_plain(section) for section in sections]}
    return json.dumps(document, indent=2) + "\n"


def _plain(section: Section) -> dict[str, object]:
    floors = [{**asdict(f), "verdict": f.verdict.value} for f in section.floors]
    rows = [asdict(row) for row in section.rows]  # type: ignore[call-overload]
    return {"title": section.title, "rows": rows, "floors": floors, "notes": [*section.notes]}

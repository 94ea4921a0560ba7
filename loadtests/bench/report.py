"""Tables and floors -> markdown to read, JSON to keep."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from loadtests.bench.passes import Rounds
from loadtests.bench.wrk import Figures


@dataclass(frozen=True)
class Row:
    """``ratio`` is the throughput relative to the reference's (1 for the reference itself)."""

    name: str
    setting: str
    figures: Figures
    ratio: float
    spread: tuple[float, float]


@dataclass(frozen=True)
class Floor:
    """The minimum that a ratio must reach."""

    what: str
    actual: float
    required: float

    @property
    def held(self) -> bool:
        return self.actual >= self.required


@dataclass(frozen=True)
class Section:
    title: str
    rows: Sequence[Row]
    floors: Sequence[Floor] = ()
    notes: Sequence[str] = field(default_factory=tuple)


def rows(rounds: Rounds, reference: str, setting: str) -> list[Row]:
    return [
        Row(
            name,
            setting,
            rounds.median(name),
            rounds.ratio(name, reference),
            rounds.spread(name, reference),
        )
        for name in rounds.figures
    ]


def missed(sections: Sequence[Section]) -> list[Floor]:
    return [floor for section in sections for floor in section.floors if not floor.held]


def markdown(machine: Mapping[str, Any], sections: Sequence[Section]) -> str:
    lines = [", ".join(f"{key}: {value}" for key, value in machine.items()), ""]
    for section in sections:
        lines += _section(section)
    return "\n".join(lines)


def _section(section: Section) -> list[str]:
    head = "| what | load | requests/s | ratio | lowest-highest | p50 ms | p95 ms | p99 ms |"
    return [
        f"## {section.title}",
        "",
        head,
        "|---|---|" + "---:|" * 6,
        *(_row(row) for row in section.rows),
        "",
        *(f"- {note}" for note in section.notes),
        *(_floor(floor) for floor in section.floors),
        "",
    ]


def _row(row: Row) -> str:
    figures, (low, high) = row.figures, row.spread
    times = " | ".join(f"{value:.2f}" for value in (figures.p50_ms, figures.p95_ms, figures.p99_ms))
    return (
        f"| {row.name} | {row.setting} | {figures.rps:,.0f} | {row.ratio:.2f} "
        f"| {low:.2f}-{high:.2f} | {times} |"
    )


def _floor(floor: Floor) -> str:
    word = "held" if floor.held else "MISSED"
    return f"- floor {word}: {floor.what}: {floor.actual:.2f}, at least {floor.required:.2f}"


def save(folder: Path, name: str, machine: Mapping[str, Any], sections: Sequence[Section]) -> Path:
    """Write ``NAME.md`` and ``NAME.json``; returns the latter's path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(markdown(machine, sections) + "\n", encoding="utf-8")
    document = {"machine": dict(machine), "sections": [_plain(section) for section in sections]}
    file = folder / f"{name}.json"
    file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return file


def _plain(section: Section) -> dict[str, Any]:
    floors = [{**asdict(floor), "held": floor.held} for floor in section.floors]
    return {**asdict(section), "floors": floors}

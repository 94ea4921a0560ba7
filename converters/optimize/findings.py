"""The findings of a run: the pick, the reasons, and everything as JSON."""

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from converters.cache import TOOLS
from converters.optimize.candidates import LEVELS, ORIGINAL
from converters.optimize.pareto import HEADLINE, NOISE, Allowed, Row, front, pick, refused_faster
from modelspec.machine import cpu_name, usable_cores
from modelspec.names import Role, member_name

JSON_FILE = "optimize.json"


@dataclass(frozen=True)
class Findings:
    """``against`` names what the ratios are relative to: the original, or FP32 if that has no
    framework of its own."""

    name: str
    task: str
    rows: tuple[Row, ...]
    samples: int
    allowed: Allowed
    against: str
    machine: Mapping[str, Any] = field(default_factory=dict)

    @property
    def candidates(self) -> list[Row]:
        """The candidates, fastest first; those without times last."""
        rows = (row for row in self.rows if row.candidate.precision != ORIGINAL)
        return sorted(rows, key=lambda row: -row.throughput)

    def without(self, precision: str, reason: str) -> "Findings":
        """The same, with every candidate of this precision refused for this reason."""
        rows = tuple(
            replace(row, reason=reason) if row.candidate.precision == precision else row
            for row in self.rows
        )
        return replace(self, rows=rows)

    @property
    def front(self) -> list[Row]:
        return front(self.rows)

    @property
    def chosen(self) -> Row | None:
        return pick(self.rows, self.allowed)

    @property
    def refused(self) -> list[tuple[Row, str]]:
        return refused_faster(self.rows, self.chosen, self.allowed)

    @property
    def left_out(self) -> list[Row]:
        return [row for row in self.rows if row.reason]

    def level_hint(self) -> str:
        """What to write into the config if another level is clearly faster; "" if none is."""
        chosen = self.chosen
        if chosen is None:
            return ""
        levels = [
            row
            for row in self.rows
            if row.candidate.precision == chosen.candidate.precision
            and row.candidate.level != "all"
        ]
        best = max(levels, key=lambda row: row.throughput, default=None)
        if best is None or best.throughput < (1 + NOISE) * chosen.throughput:
            return ""
        number = LEVELS[best.candidate.level]
        return (
            f"graph level {best.candidate.level} is {best.throughput / chosen.throughput:.2f} x as "
            f"fast: optimization {{ graph {{ level: {number} }} }} in "
            f"{member_name(self.name, Role.ENGINE)}/config.pbtxt"
        )

    def to_dict(self) -> dict[str, Any]:
        """The findings in plain JSON types."""
        chosen = self.chosen
        return {
            "name": self.name,
            "task": self.task,
            "machine": dict(self.machine),
            "versions": {tool: version(tool) for tool in TOOLS},
            "headline": HEADLINE.name,
            "ratios_against": self.against,
            "samples": self.samples,
            "allowed": asdict(self.allowed),
            "pick": chosen.candidate.name if chosen else None,
            "front": [row.candidate.name for row in self.front],
            "refused": {row.candidate.name: why for row, why in self.refused},
            "not_measured": {row.candidate.name: row.reason for row in self.left_out},
            "level_hint": self.level_hint(),
            "candidates": [_row_to_dict(row) for row in self.rows],
        }

    def save(self, folder: Path) -> Path:
        """Write ``optimize.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n"
        (folder / JSON_FILE).write_text(text, encoding="utf-8")
        return folder / JSON_FILE


def _row_to_dict(row: Row) -> dict[str, object]:
    return {
        "name": row.candidate.name,
        **asdict(row.candidate),
        "times": {cell: asdict(times) for cell, times in row.times.items()},
        "ratios": dict(row.ratios),
        "passes": row.passes,
        "size_mb": row.size_mb,
        "memory_mb": row.memory_mb,
        "accuracy": row.accuracy.to_dict() if row.accuracy else None,
        "reason": row.reason,
    }


def this_machine() -> dict[str, object]:
    """The machine that the figures are valid for."""
    return {
        "processor": cpu_name(),
        "cores": usable_cores(),
        "architecture": platform.machine(),
        "load_1min": round(os.getloadavg()[0], 2),
    }

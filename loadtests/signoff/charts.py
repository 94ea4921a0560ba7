"""Charts as SVG, drawn for a page: colours are those of the page's style sheet, so that they follow
its dark mode, and the width is the page's.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 28, 32, 56
Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """Points joined by a line, or each for itself. ``style`` is a class of the page's style sheet:
    a, b, c or d."""

    name: str
    points: Sequence[Point]
    style: str
    is_joined: bool = True


@dataclass(frozen=True)
class Mark:
    """A straight line across the chart: at a value of y, or of x."""

    name: str
    at: float
    is_vertical: bool = False


def chart(
    title: str,
    x: str,
    y: str,
    lines: Sequence[Line],
    marks: Sequence[Mark] = (),
    *,
    is_log: bool = False,
    names: Mapping[float, str] | None = None,
) -> str:
    """An SVG element; '' if there is no point. ``x`` and ``y`` are the names of the axes with their
    units; ``is_log`` draws y on a logarithmic scale, without values that are not above 0. ``names``
    are what is written at values of x, instead of round numbers."""
    lines = [
        Line(line.name, [p for p in line.points if not is_log or p[1] > 0], line.style)
        if line.is_joined
        else line
        for line in lines
    ]
    points = [point for line in lines for point in line.points if not is_log or point[1] > 0]
    if not points:
        return ""
    across = [point[0] for point in points] + [mark.at for mark in marks if mark.is_vertical]
    up = [point[1] for point in points] + [mark.at for mark in marks if not mark.is_vertical]
    horizontal = _Scale(min(0.0, *across), max(across), _LEFT, WIDTH - _RIGHT)
    low = min(up) if is_log else min(0.0, *up)
    vertical = _Scale(low, max(up), HEIGHT - _BOTTOM, _TOP, is_log=is_log)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        *_axes(horizontal, vertical, x, y, names),
    ]
    parts += [_mark(mark, horizontal, vertical) for mark in marks]
    parts += [_line(line, horizontal, vertical) for line in lines]
    return "".join([*parts, _legend(lines), "</svg>"])


class _Scale:
    """Values of an axis -> units of the drawing."""

    def __init__(
        self, low: float, high: float, begin: float, end: float, *, is_log: bool = False
    ) -> None:
        self._is_log, self._begin, self._end = is_log, begin, end
        if is_log:
            self._low = math.floor(math.log10(low) * 3) / 3
            self._high = max(math.ceil(math.log10(high) * 3) / 3, self._low + 1 / 3)
        else:
            self._low, self._high = low, high if high > low else low + 1

    def at(self, value: float) -> float:
        value = math.log10(value) if self._is_log else value
        share = (value - self._low) / (self._high - self._low)
        return round(self._begin + share * (self._end - self._begin), 1)

    def ticks(self) -> list[float]:
        if self._is_log:
            powers = range(math.floor(self._low), math.ceil(self._high) + 1)
            values = [step * 10.0**power for power in powers for step in (1, 2, 5)]
            return [v for v in values if self._low - 1e-9 <= math.log10(v) <= self._high + 1e-9]
        raw = (self._high - self._low) / 5
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(n * power for n in (1, 2, 5, 10) if n * power >= raw)
        first = math.ceil(self._low / step)
        return [n * step for n in range(first, math.floor(self._high / step) + 1)]


def _axes(
    horizontal: _Scale, vertical: _Scale, x: str, y: str, names: Mapping[float, str] | None
) -> list[str]:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    parts = []
    for value in vertical.ticks():
        at = vertical.at(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{at + 4}" text-anchor="end">{value:g}</text>')
    named = names or {value: f"{value:g}" for value in horizontal.ticks()}
    for value, name in named.items():
        at = horizontal.at(value)
        parts.append(f'<text x="{at}" y="{bottom + 18}" text-anchor="middle">{escape(name)}</text>')
    middle = (_LEFT + right) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 14}" text-anchor="middle">{escape(x)}</text>')
    parts.append(
        f'<text transform="translate(20,{(_TOP + bottom) / 2}) rotate(-90)" '
        f'text-anchor="middle">{escape(y)}</text>'
    )
    return parts


def _mark(mark: Mark, horizontal: _Scale, vertical: _Scale) -> str:
    name = escape(mark.name)
    if mark.is_vertical:
        at = horizontal.at(mark.at)
        return (
            f'<line class="mark" x1="{at}" x2="{at}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>'
            f'<text class="mark" x="{at - 4}" y="{_TOP + 10}" text-anchor="end">{name}</text>'
        )
    at = vertical.at(mark.at)
    return (
        f'<line class="mark" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at}" y2="{at}"/>'
        f'<text class="mark" x="{WIDTH - _RIGHT}" y="{at - 4}" text-anchor="end">{name}</text>'
    )


def _line(line: Line, horizontal: _Scale, vertical: _Scale) -> str:
    drawn = [(horizontal.at(x), vertical.at(y)) for x, y in line.points]
    dots = "".join(f'<circle class="{line.style}" cx="{x}" cy="{y}" r="3"/>' for x, y in drawn)
    if not line.is_joined:
        return dots
    path = " ".join(f"{x},{y}" for x, y in drawn)
    return f'<polyline class="{line.style}" points="{path}"/>' + dots * (len(drawn) <= 40)


def _legend(lines: Sequence[Line]) -> str:
    parts, at = [], float(_LEFT)
    for line in lines if len(lines) > 1 else ():
        parts.append(f'<circle class="{line.style}" cx="{at + 4}" cy="15" r="4"/>')
        parts.append(f'<text x="{at + 12}" y="20">{escape(line.name)}</text>')
        at += 30 + 10 * len(line.name)
    return "".join(parts)

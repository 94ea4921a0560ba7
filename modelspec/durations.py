"""Durations as people write them: ``250ms``, ``90s``, ``10m``, ``24h``, ``30d``."""

import re

_UNITS_S = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(rf"(\d{{1,10}}(?:\.\d{{1,9}})?)({'|'.join(_UNITS_S)})", re.ASCII)
LONGEST_S = 100 * 365 * _UNITS_S["d"]


def seconds_of(text: str) -> float:
    """The duration in seconds, above 0 and below 100 years; ValueError says how to write one."""
    match = _DURATION.fullmatch(text.strip())
    seconds = float(match[1]) * _UNITS_S[match[2]] if match else 0.0
    if match and not seconds:
        raise ValueError(f"{text!r} is not longer than 0: write 250ms, 90s, 10m, 24h or 30d")
    if not 0 < seconds < LONGEST_S:
        raise ValueError(f"{text!r} is not a duration: write 250ms, 90s, 10m, 24h or 30d")
    return seconds

"""Several callers: a file with one key a line, its weight and its name if they matter.

tg_live_abc              # a comment
tg_live_def   3   shop   # three of four requests are of this one
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from loadtests.preflight import CannotStart

MOST_TENANTS = 64  # each has connections of its own
KEY_PREFIX = "tg_"  # of the gateway's keys


@dataclass(frozen=True)
class Tenant:
    """``name`` stands for the key wherever it is shown; ``weight`` is its share of the requests,
    beside those of the others."""

    name: str
    key: str = field(repr=False)
    weight: float = 1.0

    @property
    def whose(self) -> str:
        """The key, in a message."""
        return f"the key of tenant {self.name!r}" if self.name else "the API key"


def read_keys(path: Path) -> list[Tenant]:
    """The tenants of a file, in its order. CannotStart names the line that cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise CannotStart(f"{path} cannot be read: {reason}") from None
    tenants = list(_tenants(path, text))
    if not tenants:
        raise CannotStart(f"{path} has no key: write one a line")
    if len(tenants) > MOST_TENANTS:
        raise CannotStart(f"{path} has {len(tenants)} keys, and {MOST_TENANTS} are the most")
    return tenants


def _tenants(path: Path, text: str) -> Iterator[Tenant]:
    names: set[str] = set()
    keys: set[str] = set()
    for number, line in enumerate(text.splitlines(), start=1):
        place = f"{path}, line {number}"
        words = line.partition("#")[0].split(maxsplit=2)
        if not words:
            continue
        key, weight, name = [*words, *("1", f"line {number}")[len(words) - 1 :]]
        if not (key.isascii() and key.isprintable()):
            raise CannotStart(f"{place}: the key has characters that no header can carry")
        if key in keys:
            raise CannotStart(f"{place}: this key stands there twice: give it a weight instead")
        tenant = Tenant(name.strip(), key, _weight(place, weight))
        if tenant.name.startswith(KEY_PREFIX):
            raise CannotStart(
                f"{place}: its name is a key, and names are shown: write the key first"
            )
        if tenant.name in names:
            raise CannotStart(f"{place}: the name {tenant.name!r} stands there twice")
        names.add(tenant.name)
        keys.add(key)
        yield tenant


def _weight(place: str, text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise CannotStart(
            # Not the word itself: where the order is wrong it is a key.
            f"{place}: its second word is not a weight above 0: write KEY, KEY WEIGHT or "
            "KEY WEIGHT NAME"
        )
    return weight

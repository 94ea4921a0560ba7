"""gateway.toml in force: followed while it changes, kept when the new one is wrong.

Nobody can see of a file whether it is whole, or being written, or was cut off. What it takes away
holds at once. What it gives more holds

- at once, if it was renamed into place, or ends with the line ``# end``;
- once it has not changed for ``SETTLE_S``, or for ``LOST_S`` where limits or roles have gone as
  they would in a cut;
- never, if it is only the beginning of the one before; if it has no tenants where there were some;
  or if it does not end with ``# end`` although the one before did.
"""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from gateway.policy.access import Access
from gateway.policy.gateway_toml import NO_FILE, PolicyError, Rules, parse_rules
from gateway.policy.taken import version_of
from gateway.policy.transition import covers, lost, narrowed
from gateway.private_file import write_private

log = logging.getLogger("gateway")
SETTLE_S, LOST_S = 2.0, 10.0
END = b"# end"  # the last line of a file that says that it is whole
NONE = b"none\n"  # what is kept of a start without a file


class InForce(NamedTuple):
    """One state of the policy. A request takes it once and keeps it to its end."""

    rules: Rules
    access: Access
    version: str  # 12 hex digits of the file's SHA-256, or 'default' without a file


class _Coming(NamedTuple):
    """A policy that is in force only as far as the one before covers it."""

    whole: InForce
    data: bytes
    due: float  # by the clock: when all of it is in force, if the file has not changed until then


class PolicyFile:
    """Without a file at the start: one tenant, and every key may do everything.

    With ``kept`` the last policy that was whole, or that there was none, is written there: a
    process that its supervisor starts again judges the file by it, as those that went on do.
    """

    def __init__(
        self,
        path: Path,
        clock: Callable[[], float] = time.monotonic,
        *,
        kept: Path | None = None,
    ) -> None:
        self._path, self._clock, self._kept = path, clock, kept
        self._seen: tuple[int, int, int] | None = None
        self._has_begun = self._knew_none = False
        self.current = InForce(NO_FILE, Access(NO_FILE), "default")
        self._settled, self._data = self.current, b""  # the last one that was whole
        self._coming: _Coming | None = None

    def age_s(self) -> float:
        """Since the file was last written; much for one that says that it is whole, or is not
        there."""
        try:
            age_s = time.time() - self._path.stat().st_mtime
            return 1e9 if _says_whole(self._path.read_bytes()) else age_s
        except OSError:
            return 1e9

    @property
    def pending_s(self) -> float:
        """How long what the file gives more than before must wait; 0 if nothing waits."""
        return max(0.0, self._coming.due - self._clock()) if self._coming else 0.0

    def refresh(self) -> bool:
        """Read the file again if it changed; True if other rules are now in force.

        PolicyError, once for each state of the file, when it is wrong, has gone, or seems cut off:
        what was in force stays, less what a cut file takes away. That a file has gone, or is just
        being written, must not open every API.
        """
        is_first, self._has_begun = not self._has_begun, True
        if is_first and self._begun_with_kept():
            is_first = False
        try:
            stat = self._path.stat()
            seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if seen == self._seen:
                return self._settle()
            data = self._path.read_bytes()
        except FileNotFoundError:
            if self._seen is None:
                if is_first:
                    self._write_kept(NONE)
                return False
            self._seen = self._coming = None
            raise PolicyError(f"{self._path} has gone: put it back, or restart without") from None
        is_renamed = _is_renamed(stat, self._seen)
        self._seen, coming, self._coming = seen, self._coming, None
        rules = parse_rules(_text(data, self._path), str(self._path))
        found = InForce(rules, Access(rules), version_of(data))
        if is_first:
            return self._take(found, data)
        self._check(rules, data)
        is_covered = covers(self._settled.rules, rules)
        if any(_is_cut(data, whole) for whole in (self._data, coming.data if coming else b"")):
            self._narrow(found)
            if is_covered:
                return True
            raise PolicyError(
                f"{self._path} is only the beginning of the file before, as if it had been cut "
                "off: what it gives more is not in force; if all of it is there, add a comment"
            )
        if is_covered or is_renamed or _says_whole(data):
            return self._take(found, data)
        wait_s = LOST_S if lost(self._settled.rules, rules) else SETTLE_S
        self._coming = _Coming(found, data, self._clock() + wait_s)
        self._narrow(found)
        return True

    def _check(self, rules: Rules, data: bytes) -> None:
        if self._settled.rules.tenants and not rules.tenants:
            what = "has no tenants any more" if data.strip() else "is empty"
            raise PolicyError(f"{self._path} {what}: write the rules, or restart without it")
        if _says_whole(self._data) and not _says_whole(data):
            raise PolicyError(
                f"{self._path} does not end with the line {END.decode()!r}, as the file before "
                "did: it may be cut off; write the line, or restart without it"
            )

    def _narrow(self, found: InForce) -> None:
        """Put in force what the policy before and this one both give."""
        before = self._settled
        rules = narrowed(before.rules, found.rules)
        access = Access(rules, within=before.access)
        self.current = InForce(rules, access, found.version)

    def _settle(self) -> bool:
        """Put in force what has waited long enough."""
        if self._coming is None or self._clock() < self._coming.due:
            return False
        return self._take(self._coming.whole, self._coming.data)

    def _take(self, found: InForce, data: bytes) -> bool:
        self.current = self._settled = found
        self._data, self._coming = data, None
        self._keep(data)
        return True

    @property
    def has_kept(self) -> bool:
        """Whether what is in force does not come from the file alone: it may be wrong or gone."""
        return self._knew_none or self._settled.version != "default"

    def _keep(self, data: bytes) -> None:
        if self._seen is not None:
            self._write_kept(b"%d %d %d\n" % self._seen + data)

    def _write_kept(self, data: bytes) -> None:
        if self._kept is None:
            return
        try:
            write_private(self._kept, data)
        except OSError as error:
            log.warning("%s: a restarted worker will not know the policy: %s", self._kept, error)

    def _begun_with_kept(self) -> bool:
        """Put in force what a process before this one kept, if it did."""
        if self._kept is None:
            return False
        try:
            kept = self._kept.read_bytes()
            if kept == NONE:
                self._knew_none = True
                return True
            first, _, data = kept.partition(b"\n")
            mtime_ns, size, inode = map(int, first.split())
            rules = parse_rules(_text(data, self._path), str(self._kept))
        except FileNotFoundError:
            return False
        except (OSError, ValueError) as error:
            log.error("the policy that was kept cannot be read: %s", error)
            return False
        version = version_of(data)
        self.current = self._settled = InForce(rules, Access(rules), version)
        self._data, self._seen = data, (mtime_ns, size, inode)
        return True


def _is_renamed(stat: os.stat_result, before: tuple[int, int, int] | None) -> bool:
    """Whether the file was written under another name: it is not the one that stood here, and its
    entry was changed after its last byte."""
    is_another = before is None or stat.st_ino != before[2]
    return is_another and stat.st_ctime_ns > stat.st_mtime_ns


def _is_cut(data: bytes, whole: bytes) -> bool:
    kept = data.rstrip()
    return len(kept) < len(whole.rstrip()) and whole.startswith(kept)


def _says_whole(data: bytes) -> bool:
    return data.rstrip().rpartition(b"\n")[2].strip() == END


def _text(data: bytes, path: Path) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise PolicyError(f"{path} line {line}: is not UTF-8: save it so") from None

"""The gateway.toml in force: reloaded when it changes, unless the new one is invalid.

A file does not show whether it is complete, still being written, or cut off. The rights that it
revokes are revoked at once. The rights that it adds take effect

- at once, if it was renamed into place or ends with the line ``# end``;
- once it has not changed for ``SETTLE_S``, or for ``LOST_S`` if limits or roles are missing, as
  they would be after a cut;
- never, if it is only the beginning of the previous file; if it has no tenants although that one
  had; or if it does not end with ``# end`` although that one did.
"""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from gateway.policy.access import Access
from gateway.policy.applied_policy import version_of
from gateway.policy.gateway_toml import NO_FILE, PolicyError, Rules, parse_rules
from gateway.policy.transition import covers, lost, narrowed
from modelspec.files import write_private

log = logging.getLogger("gateway")
SETTLE_S, LOST_S = 2.0, 10.0
END = b"# end"  # the last line of a file that declares itself complete
NONE = b"none\n"  # the saved copy after a start without a file


class InForce(NamedTuple):
    """One state of the policy. A request reads it once and uses it to its end."""

    rules: Rules
    access: Access
    version: str  # 12 hex digits of the file's SHA-256, or 'default' without a file


class _Pending(NamedTuple):
    """A policy that is in force only as far as the previous one covers it."""

    complete: InForce
    data: bytes
    due: float  # by the clock: when all of it takes effect, unless the file changes before


class PolicyFile:
    """Without a file at startup: one tenant, and every key may do everything.

    The last complete policy, or the fact that there was none, is saved in ``last_good``, if it is
    given: a restarted process compares the file with it, as the processes that kept running do.
    """

    def __init__(
        self,
        path: Path,
        clock: Callable[[], float] = time.monotonic,
        *,
        last_good: Path | None = None,
    ) -> None:
        self._path, self._clock, self._last_good = path, clock, last_good
        self._seen: tuple[int, int, int] | None = None
        self._has_started = self._had_no_file = False
        self.current = InForce(NO_FILE, Access(NO_FILE), "default")
        self._complete, self._data = self.current, b""  # the last complete one
        self._pending: _Pending | None = None

    def age_s(self) -> float:
        """Seconds since the file was last written; a large number if it is missing or declares
        itself complete."""
        try:
            age_s = time.time() - self._path.stat().st_mtime
            return 1e9 if _is_declared_complete(self._path.read_bytes()) else age_s
        except OSError:
            return 1e9

    @property
    def pending_s(self) -> float:
        """Seconds until the rights that the file adds take effect; 0 if none are pending."""
        return max(0.0, self._pending.due - self._clock()) if self._pending else 0.0

    def is_stale(self) -> bool:
        """Whether ``refresh`` would do anything: cheap, and asked on the event loop."""
        try:
            is_same = _state(self._path.stat()) == self._seen
        except FileNotFoundError:
            return self._seen is not None or not self._has_started
        except OSError:
            return True
        return not is_same or self._is_due()

    def _is_due(self) -> bool:
        return self._pending is not None and self._clock() >= self._pending.due

    def refresh(self) -> bool:
        """Read the file again if it has changed; True if other rules are now in force. It may run
        in a thread, one at a time: ``current`` is swapped as a whole.

        Raises PolicyError, once per state of the file, if it is invalid, missing, or seems cut off:
        the rules in force stay, minus what a cut file revokes. A file that is missing or still
        being written must not open every API.
        """
        is_first, self._has_started = not self._has_started, True
        if is_first and self._load_last_good():
            is_first = False
        try:
            stat = self._path.stat()
            seen = _state(stat)
            if seen == self._seen:
                return self._apply_pending()
            data = self._path.read_bytes()
        except FileNotFoundError:
            if self._seen is None:
                if is_first:
                    self._write_last_good(NONE)
                return False
            self._seen = self._pending = None
            raise PolicyError(
                f"{self._path} is missing: restore it, or restart without it"
            ) from None
        is_renamed = _is_renamed(stat, self._seen)
        pending_data = self._pending.data if self._pending else b""
        self._seen, self._pending = seen, None
        rules = parse_rules(_text(data, self._path), str(self._path))
        policy = InForce(rules, Access(rules), version_of(data))
        if is_first:
            return self._apply(policy, data)
        self._check(rules, data)
        is_covered = covers(self._complete.rules, rules)
        if _is_cut(data, self._data) or _is_cut(data, pending_data):
            self._narrow(policy)
            if is_covered:
                return True
            raise PolicyError(
                f"{self._path} is only the beginning of the previous file, as if it had been cut "
                "off: the rights that it adds are not in force; if it is complete, add a comment"
            )
        if is_covered or is_renamed or _is_declared_complete(data):
            return self._apply(policy, data)
        wait_s = LOST_S if lost(self._complete.rules, rules) else SETTLE_S
        self._pending = _Pending(policy, data, self._clock() + wait_s)
        self._narrow(policy)
        return True

    def _check(self, rules: Rules, data: bytes) -> None:
        if self._complete.rules.tenants and not rules.tenants:
            fault = "has no tenants any more" if data.strip() else "is empty"
            raise PolicyError(f"{self._path} {fault}: write the rules, or restart without it")
        if _is_declared_complete(self._data) and not _is_declared_complete(data):
            raise PolicyError(
                f"{self._path} does not end with the line {END.decode()!r}, as the previous file "
                "did: it may be cut off; write the line, or restart without it"
            )

    def _narrow(self, policy: InForce) -> None:
        """Put in force what both the previous policy and this one grant."""
        previous = self._complete
        rules = narrowed(previous.rules, policy.rules)
        access = Access(rules, within=previous.access)
        self.current = InForce(rules, access, policy.version)

    def _apply_pending(self) -> bool:
        """Put the pending policy in force if it has waited long enough."""
        if self._pending is None or not self._is_due():
            return False
        return self._apply(self._pending.complete, self._pending.data)

    def _apply(self, policy: InForce, data: bytes) -> bool:
        self.current = self._complete = policy
        self._data, self._pending = data, None
        self._save_last_good(data)
        return True

    @property
    def has_last_good(self) -> bool:
        """Whether there are rules in force besides the file, which may be invalid or missing."""
        return self._had_no_file or self._complete.version != "default"

    def _save_last_good(self, data: bytes) -> None:
        if self._seen is not None:
            self._write_last_good(b"%d %d %d\n" % self._seen + data)

    def _write_last_good(self, data: bytes) -> None:
        if self._last_good is None:
            return
        try:
            write_private(self._last_good, data)
        except OSError as error:
            log.warning(
                "%s: a restarted worker will not know the policy: %s", self._last_good, error
            )

    def _load_last_good(self) -> bool:
        """Put in force what an earlier process saved, if it did."""
        if self._last_good is None:
            return False
        try:
            saved = self._last_good.read_bytes()
            if saved == NONE:
                self._had_no_file = True
                return True
            first, _, data = saved.partition(b"\n")
            mtime_ns, size, inode = map(int, first.split())
            rules = parse_rules(_text(data, self._path), str(self._last_good))
        except FileNotFoundError:
            return False
        except (OSError, ValueError) as error:
            log.error("the saved policy cannot be read: %s", error)
            return False
        version = version_of(data)
        self.current = self._complete = InForce(rules, Access(rules), version)
        self._data, self._seen = data, (mtime_ns, size, inode)
        return True


def _state(stat: os.stat_result) -> tuple[int, int, int]:
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _is_renamed(stat: os.stat_result, previous: tuple[int, int, int] | None) -> bool:
    """Whether the file was written under another name: it is a different file, and its directory
    entry was changed after its last byte."""
    is_different = previous is None or stat.st_ino != previous[2]
    return is_different and stat.st_ctime_ns > stat.st_mtime_ns


def _is_cut(data: bytes, complete: bytes) -> bool:
    stripped = data.rstrip()
    return len(stripped) < len(complete.rstrip()) and complete.startswith(stripped)


def _is_declared_complete(data: bytes) -> bool:
    return data.rstrip().rpartition(b"\n")[2].strip() == END


def _text(data: bytes, path: Path) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise PolicyError(f"{path} line {line}: is not UTF-8: save the file as UTF-8") from None

"""gateway.toml in force: swapped whole when the file changes, kept when the new one is wrong."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from gateway.policy.access import Access
from gateway.policy.gateway_toml import NO_FILE, PolicyError, Rules, parse_rules


class InForce(NamedTuple):
    """One state of the policy. A request takes it once and keeps it to its end."""

    rules: Rules
    access: Access
    version: str  # 12 hex digits of the file's SHA-256, or 'default' without a file


class PolicyFile:
    """Without a file at the start: one tenant, and every key may do everything."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self.current = InForce(NO_FILE, Access(NO_FILE), "default")

    def refresh(self) -> bool:
        """Read the file again if it changed; True if other rules are now in force.

        PolicyError, once for each state of the file, when it is wrong, has gone, or is empty where
        there were tenants: what was in force stays. That a file has gone, or is just being written,
        must not open every door.
        """
        try:
            stat = self._path.stat()
            seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if seen == self._seen:
                return False
            data = self._path.read_bytes()
        except FileNotFoundError:
            if self._seen is None:
                return False
            self._seen = None
            raise PolicyError(f"{self._path} has gone: put it back, or restart without") from None
        self._seen = seen
        if not data.strip() and self.current.rules.tenants:
            raise PolicyError(f"{self._path} is empty: write the rules, or restart without it")
        rules = parse_rules(_text(data, self._path), str(self._path))
        self.current = InForce(rules, Access(rules), hashlib.sha256(data).hexdigest()[:12])
        return True


def _text(data: bytes, path: Path) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise PolicyError(f"{path} line {line}: is not UTF-8: save it so") from None

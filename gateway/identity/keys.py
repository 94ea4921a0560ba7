"""API keys: their format, and who holds one.

    tg_<id: 12>_<secret: 43>_<checksum: 6>       letters and digits

The secret has 256 bits. A scanner can recognise the prefix and verify the CRC-32 without asking us.
Only HMAC-SHA256(pepper, key) is stored: with that much entropy a slow hash would protect nothing
and would let anybody waste our CPU.
"""

import contextlib
import hmac
import logging
import math
import re
import threading
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from gateway.identity.credentials import bearer, refused
from gateway.policy.principal import ACTIONS, DEFAULT_TENANT, Grant
from gateway.policy.principal import Principal as Principal
from modelspec.files import write_private

log = logging.getLogger("gateway")
KEY_PATTERN = re.compile(r"tg_([A-Za-z0-9]{12})_[A-Za-z0-9]{43}_([A-Za-z0-9]{6})\Z")
_NO_HASH = "0" * 64
_LISTS = ("roles", "models", "scopes")
_HEADER = re.compile(r"\[keys\.([A-Za-z0-9_-]+)\]\Z")
_FIELD = re.compile(r'([a-z]+) = (["\[].*)\Z')
_NOT_IN_BOTH = re.compile(r"[\\\x00-\x08\x0b-\x1f\x7f]")  # where JSON and TOML may differ


@dataclass(frozen=True)
class KeyRecord:
    """What is stored about one key; never the key itself."""

    key_id: str
    name: str
    hmac: str
    created: str
    revoked: str = ""
    expires: str = ""  # times are ISO 8601, in UTC, to the second
    tenant: str = DEFAULT_TENANT
    roles: tuple[str, ...] = ("user",)
    models: tuple[str, ...] = ("*",)
    scopes: tuple[str, ...] = ACTIONS

    @cached_property
    def principal(self) -> Principal:
        grant = Grant(self.tenant, self.roles, self.models, self.scopes)
        return Principal(self.key_id, self.name, grant, self.ends)

    @cached_property
    def ends(self) -> float:
        """When the key expires, in seconds since the epoch. Raises ValueError if unreadable."""
        if self.revoked:
            return -math.inf
        return datetime.fromisoformat(self.expires).timestamp() if self.expires else math.inf


_FIELDS = tuple(field.name for field in fields(KeyRecord)[1:])


def key_hash(pepper: bytes, key: str) -> str:
    return hmac.digest(pepper, key.encode(), "sha256").hex()


def parse_records(text: str) -> dict[str, KeyRecord]:
    """The records in a keys.toml. Raises ValueError if it is not a valid one."""
    text = text.removeprefix("\ufeff")
    tables: Mapping[str, Any] | None = _plain_tables(text)
    if tables is None:
        try:
            tables = tomllib.loads(text).get("keys", {})
        except RecursionError:
            raise ValueError("lists or tables are nested too deeply") from None
    try:
        return {key_id: _record(key_id, table) for key_id, table in tables.items()}
    except (AttributeError, TypeError) as error:
        raise ValueError(f"the table of a key is invalid: {error}") from error


def _plain_tables(text: str) -> dict[str, dict[str, object]] | None:
    """The tables of a file that is as ``tidegate keys`` writes it: one value a line, each of which
    JSON reads as TOML does. None for any other file.

    ``tomllib`` is written in Python, and takes about four times as long.
    """
    if _NOT_IN_BOTH.search(text):
        return None
    tables: dict[str, dict[str, object]] = {}
    table: dict[str, object] | None = None
    for line in text.split("\n"):
        if not line or line.startswith("#"):
            continue
        field = _FIELD.match(line)
        if field and table is not None and field[1] not in table:
            try:
                table[field[1]] = orjson.loads(field[2])
            except ValueError:
                return None
            continue
        header = _HEADER.match(line)
        if field or not header or header[1] in tables:
            return None
        table = tables[header[1]] = {}
    return tables


def _record(key_id: str, table: Mapping[str, Any]) -> KeyRecord:
    """Every field is required: a file that was cut off must not yield a key with more rights."""
    for field in _FIELDS:
        if field not in table:
            raise ValueError(f"keys.{key_id} has no {field!r}: the file may be cut off")
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in table.items()
    }
    for name, value in values.items():
        if name in _LISTS:
            if not isinstance(value, tuple) or not all(isinstance(item, str) for item in value):
                raise ValueError(f"keys.{key_id}.{name} must be a list of strings")
        elif not isinstance(value, str):
            raise ValueError(f"keys.{key_id}.{name} must be a string")
    record = KeyRecord(key_id=key_id, **values)
    if record.expires and datetime.fromisoformat(record.expires).tzinfo is None:
        raise ValueError(f"keys.{key_id}.expires has no time zone: write 2030-01-31T00:00:00+00:00")
    return record


class _InForce(NamedTuple):
    """The keys that let in. Swapped as a whole, so that ``refresh`` may run in another thread."""

    records: Mapping[str, KeyRecord]
    pepper: bytes
    mac: hmac.HMAC  # keyed with the pepper: a copy of it saves the half of each key's HMAC
    mark: object  # is these keys' own


class Holding(NamedTuple):
    """A key that was verified: its holder, and the mark of the keys that were in force then."""

    principal: Principal
    mark: object


def _in_force(records: Mapping[str, KeyRecord], pepper: bytes) -> _InForce:
    return _InForce(records, pepper, hmac.new(pepper, digestmod="sha256"), object())


class KeyRing:
    """Verifies keys against the file; ``refresh`` notices when the file has changed.

    The last keys that could be read are saved in ``last_good``, if it is given: a process that is
    restarted while the file is invalid then accepts the same keys as those that kept running.
    """

    def __init__(
        self, keys_file: Path, pepper_file: Path, *, last_good: Path | None = None
    ) -> None:
        self._keys_file, self._pepper_file, self._last_good = keys_file, pepper_file, last_good
        self._has_started = False
        self._in_force = _in_force({}, b"")
        self._refreshing = threading.Lock()
        self._seen: object = None
        self.generation = 0  # increases when the keys change
        self.is_refused = False  # the current content of the files was not applied

    def verify(self, authorization: bytes | None) -> Principal:
        """The principal of an Authorization header. Raises Unauthenticated, always with the same
        message.

        Constant time: an unknown id and a wrong secret both cost one HMAC and one comparison.
        """
        return self.holder(bearer(authorization))

    def holder(self, key: str) -> Principal:
        """As ``verify``, of a bare key."""
        records, _, keyed, _ = self._in_force
        match = KEY_PATTERN.match(key)
        record = records.get(match[1]) if match else None
        expected = record.hmac if record and record.ends > time.time() else _NO_HASH
        mac = keyed.copy()
        mac.update(key.encode())
        if hmac.compare_digest(mac.hexdigest(), expected) and record:
            return record.principal
        raise refused()

    def holding(self, principal: Principal) -> Holding | None:
        """For ``still_holds``, of a principal that was verified just now; None if it is by another
        credential than a key."""
        in_force = self._in_force
        record = in_force.records.get(principal.id)
        is_holder = record is not None and record.principal is principal
        return Holding(principal, in_force.mark) if is_holder else None

    def still_holds(self, holding: Holding) -> bool:
        """Whether the same key would be verified as the same principal now."""
        return holding.mark is self._in_force.mark and holding.principal.ends > time.time()

    def is_valid(self, key_id: str) -> bool:
        record = self._in_force.records.get(key_id)
        return record is not None and record.ends > time.time()

    def is_stale(self) -> bool:
        """Whether ``refresh`` would read the files: cheap, and asked on the event loop."""
        try:
            return (_state(self._keys_file), _state(self._pepper_file)) != self._seen
        except FileNotFoundError:
            return not self._has_started or bool(self._in_force.records)
        except OSError:
            return True

    def refresh(self) -> bool:
        """Read the files again if they have changed; True if so. Without files no key is valid.

        It may run in a thread while others verify keys. Raises ValueError, once per state of the
        files, if one is invalid or was cut off: the keys in force then stay in force.
        """
        with self._refreshing:
            return self._refresh()

    def _refresh(self) -> bool:
        is_first, self._has_started = not self._has_started, True
        try:
            seen = (_state(self._keys_file), _state(self._pepper_file))
            if seen == self._seen:
                return False
            pepper, text = self._pepper_file.read_bytes(), self._keys_file.read_bytes()
        except FileNotFoundError:
            self._save_last_good(None)
            changed = bool(self._in_force.records)
            self._in_force = self._in_force._replace(records={}, mark=object())
            self._seen, self.is_refused = None, False
            self.generation += changed
            return changed
        self._seen, self.is_refused = seen, True
        known = self._in_force.pepper
        if pepper != known and known.startswith(pepper):
            raise ValueError(f"{self._pepper_file} is cut off: restore it")
        try:
            records = parse_records(text.decode())
        except ValueError:
            if is_first:
                self._load_last_good(pepper)
            raise
        self._save_last_good(text)
        self._apply(records, pepper)
        self.is_refused = False
        return True

    def _apply(self, records: dict[str, KeyRecord], pepper: bytes) -> None:
        self._in_force = _in_force(records, pepper)
        self.generation += 1

    def _load_last_good(self, pepper: bytes) -> None:
        with contextlib.suppress(OSError, ValueError):
            if self._last_good is not None:
                self._apply(parse_records(self._last_good.read_bytes().decode()), pepper)

    def _save_last_good(self, text: bytes | None) -> None:
        """Save the keys file's text; None removes the copy. If it cannot be saved, the older copy
        is removed too: a key that has been revoked since would be valid again."""
        if self._last_good is None:
            return
        try:
            if text is not None:
                write_private(self._last_good, text)
                return
        except OSError as error:
            log.warning("%s: a restarted worker will not know the keys: %s", self._last_good, error)
        with contextlib.suppress(OSError):
            self._last_good.unlink()


def _state(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino

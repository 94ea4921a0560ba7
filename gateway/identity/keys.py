"""API keys: their form, and who holds one.

    tg_<id: 12>_<secret: 43>_<checksum: 6>       letters and digits

The secret has 256 bits. A scanner can recognise the prefix and check the CRC-32 without asking us.
Only HMAC-SHA256(pepper, key) is stored: with that much entropy a slow hash would protect nothing
and let anybody spend our CPU.
"""

import contextlib
import hmac
import logging
import math
import re
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from gateway.identity.principal import ACTIONS, DEFAULT_TENANT, Grant, bearer, refused
from gateway.identity.principal import Principal as Principal
from gateway.private_file import write_private

log = logging.getLogger("gateway")
KEY_FORM = re.compile(r"tg_([A-Za-z0-9]{12})_[A-Za-z0-9]{43}_([A-Za-z0-9]{6})\Z")
_NO_HASH = "0" * 64
_LISTS = ("roles", "models", "scopes")


@dataclass(frozen=True)
class KeyRecord:
    """What is stored of one key; never the key itself."""

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
        """Seconds since the epoch from when on the key is refused; ValueError if unreadable."""
        if self.revoked:
            return -math.inf
        return datetime.fromisoformat(self.expires).timestamp() if self.expires else math.inf


def key_hash(pepper: bytes, key: str) -> str:
    return hmac.digest(pepper, key.encode(), "sha256").hex()


def parse_records(text: str) -> dict[str, KeyRecord]:
    """The records in a keys.toml; ValueError when it is not one."""
    try:
        tables: Mapping[str, Any] = tomllib.loads(text.removeprefix("\ufeff")).get("keys", {})
    except RecursionError:
        raise ValueError("lists or tables are nested too deep") from None
    try:
        return {key_id: _record(key_id, table) for key_id, table in tables.items()}
    except (AttributeError, TypeError) as error:
        raise ValueError(f"a key's table is not as expected: {error}") from error


def _record(key_id: str, table: Mapping[str, Any]) -> KeyRecord:
    """Every field must be there: a file that was cut off must not make a key that may do more."""
    for field in fields(KeyRecord)[1:]:
        if field.name not in table:
            raise ValueError(f"keys.{key_id} has no {field.name!r}: the file may be cut off")
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in table.items()
    }
    for name, value in values.items():
        if name in _LISTS:
            if not isinstance(value, tuple) or not all(isinstance(each, str) for each in value):
                raise ValueError(f"keys.{key_id}.{name} must be a list of texts")
        elif not isinstance(value, str):
            raise ValueError(f"keys.{key_id}.{name} must be a text")
    record = KeyRecord(key_id=key_id, **values)
    if record.expires and datetime.fromisoformat(record.expires).tzinfo is None:
        raise ValueError(f"keys.{key_id}.expires has no time zone: write 2030-01-31T00:00:00+00:00")
    return record


class KeyRing:
    """Verifies keys against the file; ``refresh`` notices when the file has changed.

    With ``kept`` the last keys that could be read are written there: a process that its supervisor
    starts again while the file is wrong lets in whom those that went on let in.
    """

    def __init__(self, keys_file: Path, pepper_file: Path, *, kept: Path | None = None) -> None:
        self._keys_file, self._pepper_file, self._kept = keys_file, pepper_file, kept
        self._has_begun = False
        self._records: dict[str, KeyRecord] = {}
        self._pepper = b""
        self._seen: object = None
        self.generation = 0  # grows when the keys change
        self.is_refused = False  # what the files hold now was not taken

    def verify(self, authorization: bytes | None) -> Principal:
        """The principal behind an Authorization header; Unauthenticated, always in the same words.

        Constant time: an unknown id and a wrong secret both cost one HMAC and one comparison.
        """
        key = bearer(authorization)
        form = KEY_FORM.match(key)
        record = self._records.get(form[1]) if form else None
        wanted = record.hmac if record and record.ends > time.time() else _NO_HASH
        if hmac.compare_digest(key_hash(self._pepper, key), wanted) and record:
            return record.principal
        raise refused()

    def is_valid(self, key_id: str) -> bool:
        record = self._records.get(key_id)
        return record is not None and record.ends > time.time()

    def refresh(self) -> bool:
        """Read the files again if they changed; True if so. Without files no key is valid.

        ValueError, once for each state of the files, when one cannot be read or was cut off: the
        keys in force stay in force.
        """
        is_first, self._has_begun = not self._has_begun, True
        try:
            seen = (_state(self._keys_file), _state(self._pepper_file))
            if seen == self._seen:
                return False
            pepper, text = self._pepper_file.read_bytes(), self._keys_file.read_bytes()
        except FileNotFoundError:
            self._keep(None)
            changed = bool(self._records)
            self._records, self._seen, self.is_refused = {}, None, False
            self.generation += changed
            return changed
        self._seen, self.is_refused = seen, True
        if pepper != self._pepper and self._pepper.startswith(pepper):
            raise ValueError(f"{self._pepper_file} is cut off: put it back")
        try:
            records = parse_records(text.decode())
        except ValueError:
            if is_first:
                self._begin_with_kept(pepper)
            raise
        self._keep(text)
        self._take(records, pepper)
        self.is_refused = False
        return True

    def _take(self, records: dict[str, KeyRecord], pepper: bytes) -> None:
        self._records, self._pepper = records, pepper
        self.generation += 1

    def _begin_with_kept(self, pepper: bytes) -> None:
        with contextlib.suppress(OSError, ValueError):
            if self._kept is not None:
                self._take(parse_records(self._kept.read_bytes().decode()), pepper)

    def _keep(self, text: bytes | None) -> None:
        """None: there are no keys any more. What cannot be written must not be there in an older
        state: a key that was revoked since would be valid again."""
        if self._kept is None:
            return
        try:
            if text is not None:
                write_private(self._kept, text)
                return
        except OSError as error:
            log.warning("%s: a restarted worker will not know the keys: %s", self._kept, error)
        with contextlib.suppress(OSError):
            self._kept.unlink()


def _state(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino

"""Create, list, rotate and revoke API keys: the writer of keys.toml. The gateway only reads it."""

import contextlib
import secrets
import string
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import tomlkit
from filelock import FileLock

from gateway.identity.keys import KEY_PATTERN, KeyRecord, key_hash, parse_records
from gateway.policy.principal import USER, Grant
from modelspec.files import write_private
from serving.errors import ServingError
from tidegate.app.toml_file import edited

ALPHABET = string.ascii_letters + string.digits


class UnknownKey(ServingError):
    """No key has this id or name; the message says how to list them."""


class KeyStore:
    """The keys in one file. Changes are atomic, keep comments, and two writers wait for each
    other."""

    def __init__(self, keys_file: Path, pepper_file: Path) -> None:
        self._keys_file, self._pepper_file = keys_file, pepper_file

    def create(
        self, name: str, grant: Grant = USER, lifetime: timedelta | None = None
    ) -> tuple[KeyRecord, str]:
        """Create a key and return it; it never exists in clear again. ValueError for a bad name."""
        if not name or len(name) > 64 or not name.isprintable():
            raise ValueError("a key's name has 1 to 64 printable characters")
        with self._locked():
            record, key = self._new(name, grant, _time_in(lifetime) if lifetime else "")
            self._write(record)
        return record, key

    def records(self) -> list[KeyRecord]:
        return list(self._read().values())

    def rotate(self, id_or_name: str, overlap: timedelta) -> tuple[KeyRecord, str, list[KeyRecord]]:
        """Create a key with the old one's rights and lifetime; the old ones end after ``overlap``.

        Returns the new record, its key and the old records. Raises UnknownKey if no valid key has
        this id or name, ValueError if several have it with different rights.
        """
        with self._locked():
            old = [
                record
                for record in self._matching(id_or_name)
                if record.ends > datetime.now(UTC).timestamp()
            ]
            if not old:
                raise _unknown(id_or_name)
            last = old[-1]  # in the file's order: the clock may have been set back since
            if any(record.principal.grant != last.principal.grant for record in old):
                raise ValueError(f"the keys called {id_or_name!r} differ: rotate each by its id")
            record, key = self._new(last.name, last.principal.grant, _same_lifetime(last))
            ends = _time_in(overlap)
            ended = [replace(record, expires=min(record.expires or ends, ends)) for record in old]
            self._write(*ended, record)
        return record, key, ended

    def revoke(self, id_or_name: str) -> list[KeyRecord]:
        """Revoke the key with this id, or all keys of this name; UnknownKey if there are none."""
        with self._locked():
            revoked = [replace(record, revoked=_time_in()) for record in self._matching(id_or_name)]
            self._write(*revoked)
        return revoked

    def _matching(self, id_or_name: str) -> list[KeyRecord]:
        records = [
            record
            for record in self._read().values()
            if id_or_name in (record.key_id, record.name) and not record.revoked
        ]
        if not records:
            raise _unknown(id_or_name)
        return records

    def _new(self, name: str, grant: Grant, expires: str) -> tuple[KeyRecord, str]:
        key_id, key = generate_key()
        hashed = key_hash(self._pepper(), key)
        return KeyRecord(key_id, name, hashed, _time_in(), "", expires, *grant), key

    def _read(self) -> dict[str, KeyRecord]:
        return parse_records(self._keys_file.read_text()) if self._keys_file.exists() else {}

    def _write(self, *records: KeyRecord) -> None:
        """Put these records into the file; comments and all other keys stay as they are."""

        def put(document: tomlkit.TOMLDocument) -> None:
            keys: Any = document.setdefault("keys", tomlkit.table(is_super_table=True))
            for record in records:
                table = keys.setdefault(record.key_id, tomlkit.table())
                for field, value in asdict(record).items():
                    if field != "key_id":
                        table[field] = list(value) if isinstance(value, tuple) else value

        text = self._keys_file.read_text() if self._keys_file.exists() else ""
        write_private(self._keys_file, edited(text, put).encode())

    def _pepper(self) -> bytes:
        if not self._pepper_file.exists():
            write_private(self._pepper_file, secrets.token_bytes(32))
        return self._pepper_file.read_bytes()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._keys_file.parent.mkdir(parents=True, exist_ok=True)
        # Beside the file itself: homes that share it by links must exclude each other.
        with FileLock(self._keys_file.resolve().with_suffix(".lock")):
            yield


def _unknown(id_or_name: str) -> UnknownKey:
    return UnknownKey(f"no valid key has the id or name {id_or_name!r}: see `tidegate keys list`")


def _same_lifetime(record: KeyRecord) -> str:
    """The expiry of a key created now with the same lifetime as this one; '' for none."""
    if not record.expires:
        return ""
    return _time_in(datetime.fromisoformat(record.expires) - datetime.fromisoformat(record.created))


def _time_in(delay: timedelta = timedelta()) -> str:
    return (datetime.now(UTC) + delay).isoformat(timespec="seconds")


def generate_key() -> tuple[str, str]:
    """A new (id, key)."""
    key_id, secret = _random(12), _random(43)
    body = f"tg_{key_id}_{secret}"
    return key_id, f"{body}_{_checksum(body)}"


def state_of(record: KeyRecord) -> str:
    """The state that ``tidegate keys list`` shows."""
    if record.revoked:
        return f"revoked {record.revoked}"
    if not record.expires:
        return "valid"
    return f"{'valid until' if record.ends > time.time() else 'expired'} {record.expires}"


def _random(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


def _checksum(body: str) -> str:
    value, text = zlib.crc32(body.encode()), ""
    for _ in range(6):
        value, digit = divmod(value, len(ALPHABET))
        text += ALPHABET[digit]
    return text


def has_good_checksum(key: str) -> bool:
    """Whether this could be one of our keys, as a secret scanner would check."""
    return bool(KEY_PATTERN.match(key)) and _checksum(key[:-7]) == key[-6:]

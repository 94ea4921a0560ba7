"""Create, list and revoke API keys: the writer of keys.toml. The gateway only reads it."""

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import tomli_w

from gateway.keys import KeyRecord, generate_key, key_hash, parse_records


class UnknownKey(LookupError):
    """No key has this id or name; the message says how to list them."""


class KeyStore:
    """The keys in one file. Changes are atomic, and two writers wait for each other."""

    def __init__(self, keys_file: Path, pepper_file: Path) -> None:
        self._keys_file, self._pepper_file = keys_file, pepper_file

    def create(self, name: str) -> tuple[KeyRecord, str]:
        """A new key; this is the only time that it exists in clear."""
        if not name or len(name) > 64 or not name.isprintable():
            raise ValueError("a key's name has 1 to 64 printable characters")
        with self._locked():
            records = self._read()
            key_id, key = generate_key()
            record = KeyRecord(key_id, name, key_hash(self._pepper(), key), _now())
            self._write({**records, key_id: record})
        return record, key

    def records(self) -> list[KeyRecord]:
        return list(self._read().values())

    def revoke(self, id_or_name: str) -> list[KeyRecord]:
        """Revoke the key with this id, or all keys of this name; UnknownKey if there is none."""
        with self._locked():
            records = self._read()
            found = [
                record
                for record in records.values()
                if id_or_name in (record.key_id, record.name) and not record.revoked
            ]
            if not found:
                raise UnknownKey(
                    f"no valid key has the id or name {id_or_name!r}: see `tidegate keys list`"
                )
            revoked = [replace(record, revoked=_now()) for record in found]
            self._write({**records, **{record.key_id: record for record in revoked}})
        return revoked

    def _read(self) -> dict[str, KeyRecord]:
        return parse_records(self._keys_file.read_text()) if self._keys_file.exists() else {}

    def _write(self, records: dict[str, KeyRecord]) -> None:
        tables = {
            key_id: {k: v for k, v in asdict(record).items() if k != "key_id"}
            for key_id, record in records.items()
        }
        write_private(self._keys_file, tomli_w.dumps({"keys": tables}).encode())

    def _pepper(self) -> bytes:
        if not self._pepper_file.exists():
            write_private(self._pepper_file, secrets.token_bytes(32))
        return self._pepper_file.read_bytes()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._keys_file.parent.mkdir(parents=True, exist_ok=True)
        lock = self._keys_file.with_suffix(".lock")
        with lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only this user can read (0600), whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

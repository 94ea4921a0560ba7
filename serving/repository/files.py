"""Folders that must survive a crash: named after their owner, fsynced, hashed, measured."""

import os
import secrets
from pathlib import Path

from modelspec.files import file_sha256, sync_folder


def owned_prefix(what: str) -> str:
    """The beginning of a name in the staging folder, with this process's pid: leftovers of a killed
    process can be told from work in progress. No model's name has a "+"."""
    return f"{what}+{os.getpid()}+"


def new_name(what: str) -> str:
    return f"{owned_prefix(what)}{secrets.token_hex(4)}"


def sync(folder: Path) -> None:
    """Flush every file to disk before the rename: a crash must not leave a version of empty
    files."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file under ``folder``, by its path relative to ``folder``."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}


def size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

"""Conversions are cached by content: same weights, same code, same tools, same result.

Each folder has the checksums of its files: after a power cut, or an edit by hand, it counts as
none, and is built anew. Its proof was that of other files.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

from platformdirs import user_cache_path

from converters.code_key import code_sha256
from converters.errors import ConversionError
from modelspec.files import file_hashes, sync_files, sync_folder
from modelspec.held import abandoned_folders, held_folder

TOOLS = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime")
PROOF_FILE = "proof.json"
_CHECKSUMS_FILE = "sha256.json"  # of every other file of the folder

BUILDING = ".building"  # the beginning of the names of folders under construction

Progress = Callable[[str], None]


def cache_root() -> Path:
    """``${XDG_CACHE_HOME:-~/.cache}/tidegate`` on Linux, the system's own folder elsewhere."""
    return user_cache_path("tidegate")


def cached(key: str) -> Path | None:
    """The folder with this key, if it is in the cache and as it was written."""
    folder = cache_root() / "conversions" / key
    return folder if _is_intact(folder) else None


def conversion(name: str, key: str, build: Callable[[Path], None]) -> Path:
    """The folder with this key: from the cache, or built by ``build`` in a temporary folder and
    then cached. If ``build`` raises, nothing is left behind; ConversionError if the cache cannot be
    read or written."""
    final = cache_root() / "conversions" / key
    if _is_intact(final):
        return final
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _clear_up(final.parent)
        with held_folder(final.parent, BUILDING) as building:
            folder = building / "done"
            folder.mkdir()
            build(folder)
            checksums = json.dumps(file_hashes(folder))
            (folder / _CHECKSUMS_FILE).write_text(checksums, encoding="utf-8")
            _publish(folder, final, building / "damaged")
    except OSError as error:
        raise ConversionError(
            f"{name}: a file could not be read or written ({error}): the conversion needs free "
            f"space and write permission in {final.parent} (XDG_CACHE_HOME sets another folder); "
            "then run the same command again"
        ) from error
    return final


def _clear_up(folder: Path) -> None:
    """Remove unfinished folders of processes that were killed."""
    for unfinished in abandoned_folders(folder):
        shutil.rmtree(unfinished, ignore_errors=True)


def _publish(folder: Path, final: Path, aside: Path) -> None:
    """One rename makes it visible, when it is on the disk; the folder of a process that was faster
    is as good, and one that is damaged is moved ``aside``."""
    sync_files(folder)
    if final.exists():
        if _is_intact(final):
            return
        final.rename(aside)
    try:
        folder.rename(final)
    except OSError:
        if not _is_intact(final):
            raise
    sync_folder(final.parent)


def _is_intact(folder: Path) -> bool:
    """Whether the folder has the files that were written, and no others."""
    try:
        checksums = json.loads((folder / _CHECKSUMS_FILE).read_text(encoding="utf-8"))
        actual = file_hashes(folder)
    except (OSError, ValueError):
        return False
    actual.pop(_CHECKSUMS_FILE)
    return bool(actual == checksums)


def content_key(settings: str, *modules: str, packages: Sequence[str] = ()) -> str:
    """SHA-256 over what the code of these modules does (``code_key``), the versions of ``TOOLS``
    and ``packages``, and ``settings``."""
    tools = "".join(f"{tool}={version(tool)};" for tool in (*TOOLS, *packages))
    return content_text(f"{code_sha256(*modules)} {tools}{settings}")


def content_text(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def files_sha256(files: Iterable[Path], settings: str = "") -> str:
    """SHA-256 over the files' names and bytes, in this order, and ``settings``."""
    digest = hashlib.sha256(settings.encode())
    for path in files:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()

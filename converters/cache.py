"""Conversions are cached by content: same weights, same code, same tools, same result."""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

from platformdirs import user_cache_path

from converters.code_key import code_sha256
from converters.errors import ConversionError
from modelspec.held import abandoned_folders, held_folder

TOOLS = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime")
PROOF_FILE = "proof.json"

BUILDING = ".building"  # the beginning of the names of folders under construction

Progress = Callable[[str], None]


def cache_root() -> Path:
    """``${XDG_CACHE_HOME:-~/.cache}/tidegate`` on Linux, the system's own folder elsewhere."""
    return user_cache_path("tidegate")


def conversion(name: str, key: str, marker: str, build: Callable[[Path], None]) -> Path:
    """The folder with this key: from the cache, or built by ``build`` in a temporary folder and
    then cached. It is complete when it has the file ``marker``. If ``build`` raises, nothing is
    left behind; ConversionError if the cache cannot be read or written."""
    final = cache_root() / "conversions" / key
    if (final / marker).is_file():
        return final
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _clear_up(final.parent)
        with held_folder(final.parent, BUILDING) as building:
            folder = building / "done"
            folder.mkdir()
            build(folder)
            _publish(folder, final, marker)
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


def _publish(folder: Path, final: Path, marker: str) -> None:
    """One rename makes it visible; the folder of a process that was faster is as good."""
    try:
        folder.rename(final)
    except OSError:
        if not (final / marker).is_file():
            raise


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

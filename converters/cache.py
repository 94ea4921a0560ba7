"""Conversions are cached by content: same weights, same code, same tools, same result."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

from converters.errors import ConversionError

TOOLS = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime")
# A conversion is whole, and proved, when it has this file.
PROOF_FILE = "proof.json"

Say = Callable[[str], None]


def cache_root() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "tidegate"


def conversion(name: str, key: str, build: Callable[[Path], None], say: Say) -> Path:
    """The folder of the conversion with this key: from the cache, or built by ``build`` in a
    temporary folder and then kept. What ``build`` raises leaves nothing behind."""
    final = cache_root() / "conversions" / key
    if (final / PROOF_FILE).is_file():
        say(f"{name}: converted and proved before, taken from the cache")
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=final.parent, prefix=".building-") as building:
        folder = Path(building) / "done"
        folder.mkdir()
        build(folder)
        _keep(folder, final)
    return final


def _keep(folder: Path, final: Path) -> None:
    """One rename makes it visible; another process that was quicker is as good."""
    try:
        folder.rename(final)
    except OSError as error:
        if not (final / PROOF_FILE).is_file():
            raise ConversionError(f"cannot write the cache {final.parent}: {error}") from error


def content_key(files: Iterable[Path], settings: str = "", more_tools: tuple[str, ...] = ()) -> str:
    """SHA-256 over the files' bytes, this package's own code, the tools' versions and settings."""
    digest = hashlib.sha256(settings.encode())
    own = sorted(Path(__file__).parent.rglob("*.py"))
    for path in [*sorted(files), *own]:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    for tool in (*TOOLS, *more_tools):
        digest.update(f"{tool}={version(tool)};".encode())
    return digest.hexdigest()

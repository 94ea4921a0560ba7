"""Conversions are cached by content: same weights, same code, same tools, same result."""

import hashlib
import os
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

TOOLS = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime")


def cache_root() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "tidegate"


def content_key(files: Iterable[Path], settings: str = "") -> str:
    """SHA-256 over the files' bytes, this package's own code, the tools' versions and settings."""
    digest = hashlib.sha256(settings.encode())
    own = sorted(Path(__file__).parent.rglob("*.py"))
    for path in [*sorted(files), *own]:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    for tool in TOOLS:
        digest.update(f"{tool}={version(tool)};".encode())
    return digest.hexdigest()

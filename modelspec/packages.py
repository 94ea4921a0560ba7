"""Where an installed package with data or weights is; it is not imported."""

import importlib.util
from pathlib import Path


def package_folder(name: str) -> Path | None:
    """The folder of the package; None if it is not installed."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None

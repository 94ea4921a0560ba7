"""The code behind a factory: the user's own files, wherever they are, and the installed packages
that they import. A change of either may change the model, with the same weights.
"""

import ast
import importlib.util
import site
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from types import ModuleType

from converters.cache import TOOLS

TIDEGATE_PACKAGES = (
    "tidegate",
    "converters",
    "ensembles",
    "modelspec",
    "serving",
    "gateway",
    "loadtests",
)


@dataclass(frozen=True)
class OwnCode:
    """``files`` are resolved and sorted; ``distributions`` are the names that pip knows, without
    ``TOOLS``."""

    files: tuple[Path, ...]
    distributions: tuple[str, ...]


def own_code(module: ModuleType) -> OwnCode:
    """The file of a loaded module, and what it imports and is loaded, directly or through the
    user's other modules. Whatever is loaded from its folder counts as imported, however that was
    done."""
    file = Path(module.__file__ or "").resolve()
    pending = [*_with_parents(module.__name__), *_loaded_in(file.parent)]
    files, packages, seen = {file}, set[str](), set[str]()
    while pending:
        name = pending.pop()
        path = _file_of(name)
        if name in seen or path is None or name.partition(".")[0] in TIDEGATE_PACKAGES:
            continue
        seen.add(name)
        if is_installed(path):
            packages.add(name.partition(".")[0])
            continue
        files.add(path)
        if path.suffix == ".py":
            pending += _imported(path, sys.modules[name].__package__ or "")
    packages = packages.difference(sys.stdlib_module_names, TOOLS)
    known = packages_distributions() if packages else {}
    distributions = {name for package in packages for name in known.get(package, ())}
    return OwnCode(tuple(sorted(files)), tuple(sorted(distributions)))


def is_installed(path: Path) -> bool:
    """Whether the file came with Python, or with a package that pip installed."""
    return any(path.is_relative_to(folder) for folder in _installed_folders())


@cache
def _installed_folders() -> tuple[Path, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = [sysconfig.get_path(name) for name in names]
    return tuple(
        Path(folder).resolve()
        for folder in (*folders, *site.getsitepackages(), site.getusersitepackages())
    )


def _loaded_in(folder: Path) -> Iterator[str]:
    for name in list(sys.modules):
        path = _file_of(name)
        if path is not None and path.is_relative_to(folder) and not is_installed(path):
            yield name


def _file_of(name: str) -> Path | None:
    """The file of a loaded module; None if there is none."""
    file = getattr(sys.modules.get(name), "__file__", None)
    # torch.ops and torch.classes have a __file__ that does not exist.
    return Path(file).resolve() if isinstance(file, str) and Path(file).is_file() else None


def _imported(path: Path, package: str) -> Iterator[str]:
    """The names that the file imports, inside functions too; some may be no modules."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _with_parents(alias.name)
        elif isinstance(node, ast.ImportFrom):
            name = "." * node.level + (node.module or "")
            if node.level:
                try:
                    name = importlib.util.resolve_name(name, package)
                except ImportError:  # of a script, or for type checkers: not what is imported here
                    continue
            yield from _with_parents(name)
            yield from (f"{name}.{alias.name}" for alias in node.names)


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    yield from (".".join(parts[:count]) for count in range(1, len(parts) + 1))

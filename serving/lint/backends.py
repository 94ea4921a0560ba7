"""Which backend serves a model, and whether Triton has it, as Triton decides it before loading."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from serving.errors import TritonMissing
from serving.lint.finding import Finding, error, one_of
from serving.triton.installation import find_triton

# The file that each backend looks for if the config names no other.
DEFAULT_FILES: Mapping[str, str] = {
    "onnxruntime": "model.onnx",
    "tensorrt": "model.plan",
    "pytorch": "model.pt",
    "tensorflow": "model.savedmodel",
    "openvino": "model.xml",
    "python": "model.py",
    "vllm": "model.json",
    "torch_export": "model.pt2",
    "dali": "model.dali",
}
# Platforms that name a backend. A backend in this table needs its own platform, or none.
PLATFORMS: Mapping[str, str] = {
    "onnxruntime_onnx": "onnxruntime",
    "tensorrt_plan": "tensorrt",
    "pytorch_libtorch": "pytorch",
    "tensorflow_savedmodel": "tensorflow",
    "tensorflow_graphdef": "tensorflow",
}
# What Triton fills in if the config says neither platform nor file: the first that exists.
_GUESSES = (
    ("model.savedmodel", "tensorflow"),
    ("model.graphdef", "tensorflow"),
    ("model.plan", "tensorrt"),
    ("model.onnx", "onnxruntime"),
    ("model.xml", "openvino"),
    ("model.pt", "pytorch"),
    ("model.py", "python"),
)
_FOLDERS = ("model.savedmodel",)
_FOLDERS_TOO = ("model.onnx", "model.xml", "model.py")
# Backends of NVIDIA's containers and repositories, and others that are published.
KNOWN = frozenset(
    {
        *DEFAULT_FILES,
        *("fil", "tensorrtllm", "armnn_tflite", "hugectr", "hps", "nvtabular", "paddle", "mlflow"),
        *("identity", "repeat", "square", "minimal", "recommended", "add_sub", "dist_addsub"),
        *("sequence", "dyna_sequence", "implicit_state", "query", "bls", "iterative_sequence"),
        *("distributed_addsub", "rapids_identity", "rapids_linear", "fastertransformer"),
        *("stateful", "caffe2"),
        *("openvino_genai",),  # ours: serving/backends
    }
)  # fmt: skip
ENSEMBLE = "ensemble"


@dataclass(frozen=True)
class Resolved:
    """``backend`` is '' if Triton finds none, and for an ensemble; ``file`` is '' if it is unknown
    which file the backend looks for."""

    backend: str
    platform: str
    file: str


def resolve(config: ModelConfig, folder: Path) -> Resolved:
    """The backend, platform and file that Triton derives from the config."""
    backend, platform = str(config.backend), str(config.platform)
    file = str(config.default_model_filename)
    if not backend:
        if platform in PLATFORMS:
            backend = PLATFORMS[platform]
        elif file:
            # Triton recognizes the file even if the platform belongs to no backend.
            backend = next((candidate for name, candidate in _GUESSES if name == file), "")
        elif not platform:
            backend = _guessed(folder)
    if not platform and backend in PLATFORMS.values():
        platform = _platform_of(backend)
        if backend == "tensorflow" and "model.graphdef" in (file, *_contents(folder)):
            platform = "tensorflow_graphdef"
    if not file and backend and not (backend == "pytorch" and config.runtime == "model.py"):
        file = DEFAULT_FILES.get(backend, "")
        if platform == "tensorflow_graphdef":
            file = "model.graphdef"
    return Resolved(backend, platform, file)


def _platform_of(backend: str) -> str:
    return next(platform for platform, name in PLATFORMS.items() if name == backend)


def first_folder(folder: Path) -> Path | None:
    """The one subfolder in which Triton looks for a file that identifies the backend: the first by
    name, whether or not it is a version."""
    return min(filter(Path.is_dir, _list(folder)), key=os.fsencode, default=None)


def check(
    config: ModelConfig, resolved: Resolved, folder: Path, location: str
) -> Iterator[Finding]:
    """Findings about a model's backend; none for ensembles."""
    if resolved.platform == ENSEMBLE and not config.backend:
        return
    if not resolved.backend:
        yield from _missing(config, folder, location)
        return
    platform_backend = PLATFORMS.get(resolved.platform)
    if resolved.backend in PLATFORMS.values() and platform_backend != resolved.backend:
        yield error(
            "platform-unknown",
            location,
            f"says backend {resolved.backend!r} and platform {resolved.platform!r}, which do not "
            "match",
            f'write platform: "{_platform_of(resolved.backend)}", or leave the platform out',
        )
    elif not _is_available(resolved.backend, config, folder):
        matches = get_close_matches(resolved.backend.lower(), sorted(KNOWN), 1)
        yield error(
            "backend-unknown",
            location,
            f"asks for the backend {resolved.backend!r}, which is neither one of NVIDIA's, nor in "
            "this machine's Triton, nor beside the model",
            (f'did you mean "{matches[0]}"? Otherwise' if matches else "correct the name, or")
            + f" put libtriton_{resolved.backend}.so into {folder.name}/ or install the backend "
            "where you lint",
        )
    if config.runtime:
        yield from _runtime(config, resolved.backend, folder, location)


def _missing(config: ModelConfig, folder: Path, location: str) -> Iterator[Finding]:
    if config.platform:
        yield error(
            "platform-unknown",
            location,
            f"says platform {config.platform!r}, which Triton does not know, and no backend",
            one_of(PLATFORMS) + '; or write backend: "..." instead',
        )
        return
    searched = first_folder(folder)
    yield error(
        "backend-missing",
        location,
        "names no backend, and "
        + (
            f"default_model_filename {config.default_model_filename!r} does not identify one"
            if config.default_model_filename
            else f"nothing in {searched.name}/ identifies one (Triton only searches the first "
            "folder)"
            if searched
            else "there is no version that identifies one"
        ),
        'write backend: "..."',
    )


def _runtime(config: ModelConfig, backend: str, folder: Path, location: str) -> Iterator[Finding]:
    # Joined to the backend's folder, and it may not lead out of it.
    runtime = os.path.relpath(os.path.normpath(f"/{backend}/{config.runtime}"), f"/{backend}")
    if runtime.startswith(".."):
        is_found, reason = False, "leads out of the backend's folder"
    elif runtime == "model.py":
        # A backend that is itself written in Python; the backend python is not.
        is_found = backend != "python"
        reason = "is for a backend written in Python, which python itself is not"
    else:
        is_found = runtime == f"libtriton_{backend}.so" or bool(list(folder.glob(f"**/{runtime}")))
        reason = "is neither in the model's folder nor in the backend's"
    if not is_found:
        yield error(
            "runtime-unknown",
            location,
            f"says runtime {config.runtime!r}, which {reason}",
            f"leave runtime out, or write libtriton_{backend}.so",
        )


def _guessed(folder: Path) -> str:
    contents = _contents(folder)
    searched = first_folder(folder)
    for name, backend in _GUESSES:
        if name in contents and searched is not None:
            is_folder = (searched / name).is_dir()
            if name in _FOLDERS_TOO or is_folder == (name in _FOLDERS):
                return backend
    # The folder's name decides: model.identity is served by identity.
    return folder.name.partition(".")[2]


def _contents(folder: Path) -> set[str]:
    searched = first_folder(folder)
    return {path.name for path in _list(searched)} if searched else set()


def _list(folder: Path) -> list[Path]:
    """The folder's entries; none if it cannot be read, which is reported where the model is
    read."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _is_available(backend: str, config: ModelConfig, folder: Path) -> bool:
    library = config.runtime or f"libtriton_{backend}.so"
    return (
        backend in KNOWN
        or any((parent / library).exists() for parent in (folder, *folder.glob("[0-9]*")))
        or backend in _installed()
    )


def _installed() -> frozenset[str]:
    try:
        backends = find_triton().backends
    except TritonMissing:
        return frozenset()
    return frozenset(path.name for path in backends.iterdir() if path.is_dir())

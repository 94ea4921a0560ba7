"""Which backend serves a model, and whether Triton has it, as Triton settles it before it loads."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from serving.errors import TritonMissing
from serving.installation import find_triton
from serving.lint.finding import Finding, error, one_of

# The file that each backend looks for, where the config names no other.
DEFAULT_FILES: Mapping[str, str] = {
    "onnxruntime": "model.onnx",
    "tensorrt": "model.plan",
    "pytorch": "model.pt",
    "tensorflow": "model.savedmodel",
    "openvino": "model.xml",
    "python": "model.py",
    "vllm": "model.json",
    "dali": "model.dali",
}
# Platforms that name a backend. A backend of this table wants its own platform, or none.
PLATFORMS: Mapping[str, str] = {
    "onnxruntime_onnx": "onnxruntime",
    "tensorrt_plan": "tensorrt",
    "pytorch_libtorch": "pytorch",
    "tensorflow_savedmodel": "tensorflow",
    "tensorflow_graphdef": "tensorflow",
}
# What Triton fills in where the config says neither platform nor file: the first that lies there.
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
    }
)  # fmt: skip
ENSEMBLE = "ensemble"


@dataclass(frozen=True)
class Settled:
    """``backend`` is '' where Triton finds none, and for an ensemble; ``file`` is '' where nobody
    can know what the backend looks for."""

    backend: str
    platform: str
    file: str


def settle(config: ModelConfig, folder: Path) -> Settled:
    """The backend, platform and file that Triton will take the config to mean."""
    backend, platform = str(config.backend), str(config.platform)
    file = str(config.default_model_filename)
    if not backend:
        if platform in PLATFORMS:
            backend = PLATFORMS[platform]
        elif file:
            # A platform that is no backend's does not keep Triton from knowing the file.
            backend = next((each for name, each in _GUESSES if name == file), "")
        elif not platform:
            backend = _guessed(folder)
    if not platform and backend in PLATFORMS.values():
        platform = next(name for name, each in PLATFORMS.items() if each == backend)
        if backend == "tensorflow" and "model.graphdef" in (file, *_contents(folder)):
            platform = "tensorflow_graphdef"
    if not file and backend and not (backend == "pytorch" and config.runtime == "model.py"):
        file = DEFAULT_FILES.get(backend, "")
        if platform == "tensorflow_graphdef":
            file = "model.graphdef"
    return Settled(backend, platform, file)


def first_folder(folder: Path) -> Path | None:
    """The one sub-folder that Triton looks into for a file that tells the backend: the first by
    name, whether or not it is a version."""
    return min(filter(Path.is_dir, _inside(folder)), key=os.fsencode, default=None)


def check(config: ModelConfig, settled: Settled, folder: Path, place: str) -> Iterator[Finding]:
    """What Triton says of a model's backend; nothing for ensembles."""
    if settled.platform == ENSEMBLE and not config.backend:
        return
    if not settled.backend:
        yield from _none(config, folder, place)
        return
    own = PLATFORMS.get(settled.platform)
    if settled.backend in PLATFORMS.values() and own != settled.backend:
        right = next(name for name, each in PLATFORMS.items() if each == settled.backend)
        yield error(
            "platform-unknown",
            place,
            f"says backend {settled.backend!r} and platform {settled.platform!r}, which do not go "
            "together",
            f'write platform: "{right}", or leave the platform out',
        )
    elif not _is_there(settled.backend, config, folder):
        near = get_close_matches(settled.backend.lower(), sorted(KNOWN), 1)
        yield error(
            "backend-unknown",
            place,
            f"asks for the backend {settled.backend!r}, which is neither one of NVIDIA's, nor in "
            "this machine's Triton, nor beside the model",
            (f'did you mean "{near[0]}"? Else' if near else "correct the name, or")
            + f" put libtriton_{settled.backend}.so into {folder.name}/ or install the backend "
            "where you lint",
        )
    if config.runtime:
        yield from _runtime(config, settled.backend, folder, place)


def _none(config: ModelConfig, folder: Path, place: str) -> Iterator[Finding]:
    if config.platform:
        yield error(
            "platform-unknown",
            place,
            f"says platform {config.platform!r}, which Triton does not know, and no backend",
            one_of(PLATFORMS) + '; or write backend: "..." instead',
        )
        return
    looked = first_folder(folder)
    yield error(
        "backend-missing",
        place,
        "names no backend, and "
        + (
            f"default_model_filename {config.default_model_filename!r} tells none"
            if config.default_model_filename
            else f"nothing in {looked.name}/ tells one (Triton looks into the first folder only)"
            if looked
            else "there is no version to tell it from"
        ),
        'write backend: "..."',
    )


def _runtime(config: ModelConfig, backend: str, folder: Path, place: str) -> Iterator[Finding]:
    # Joined to the backend's folder, and it may not lead out of it.
    runtime = os.path.relpath(os.path.normpath(f"/{backend}/{config.runtime}"), f"/{backend}")
    if runtime.startswith(".."):
        found, why = False, "leads out of the backend's folder"
    elif runtime == "model.py":
        # A backend that is itself written in Python; the backend python is not.
        found = backend != "python"
        why = "means a backend written in Python, and python is none"
    else:
        found = runtime == f"libtriton_{backend}.so" or bool(list(folder.glob(f"**/{runtime}")))
        why = "lies neither beside the model nor where the backend does"
    if not found:
        yield error(
            "runtime-unknown",
            place,
            f"says runtime {config.runtime!r}, which {why}",
            f"leave runtime out, or write libtriton_{backend}.so",
        )


def _guessed(folder: Path) -> str:
    there = _contents(folder)
    looked = first_folder(folder)
    for name, backend in _GUESSES:
        if name in there and looked is not None:
            is_folder = (looked / name).is_dir()
            if name in _FOLDERS_TOO or is_folder == (name in _FOLDERS):
                return backend
    # The name of the folder tells: model.identity is served by identity.
    return folder.name.partition(".")[2]


def _contents(folder: Path) -> set[str]:
    looked = first_folder(folder)
    return {path.name for path in _inside(looked)} if looked else set()


def _inside(folder: Path) -> list[Path]:
    """Nothing, where it may not be read: that is told where the folder is read."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _is_there(backend: str, config: ModelConfig, folder: Path) -> bool:
    library = config.runtime or f"libtriton_{backend}.so"
    return (
        backend in KNOWN
        or any((place / library).exists() for place in (folder, *folder.glob("[0-9]*")))
        or backend in _installed()
    )


def _installed() -> frozenset[str]:
    try:
        backends = find_triton().backends
    except TritonMissing:
        return frozenset()
    return frozenset(path.name for path in backends.iterdir() if path.is_dir())

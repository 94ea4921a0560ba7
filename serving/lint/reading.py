"""The repository as the linter sees it: every folder, even a broken one, read once."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from modelspec.layout import CONFIG_FILE
from modelspec.pbtxt import parse
from serving.lint import backends, graph_file, syntax
from serving.lint.backends import Resolved
from serving.lint.graph_file import ReadGraph
from serving.repository.model_repository import ModelRepository

# Backends that read tensors out of the model and fill in what the config leaves open.
_NEVER_COMPLETE = ("", "pytorch")
_DEFINES = re.compile(r"^\s+def\s+auto_complete_config\b", re.MULTILINE)
# Triton's std::stoll: the number that a folder's name begins with is its version, whatever follows.
_LEADING_NUMBER = re.compile(r"\s*[+-]?\d+", re.ASCII)


@dataclass(frozen=True)
class Model:
    """A folder of the repository. ``written`` is None if there is no config or it does not parse,
    and ``fault`` says why it does not; ``file`` is its path in the folder."""

    folder: Path
    written: ModelConfig | None
    fault: str = ""
    file: str = CONFIG_FILE
    entries: tuple[str, ...] = field(default=(), compare=False)

    @property
    def config(self) -> ModelConfig:
        """The config as written, or an empty one."""
        return self.written if self.written is not None else ModelConfig()

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def location(self) -> str:
        return f"{self.name}/{self.file}"

    @cached_property
    def claims(self) -> dict[int, list[str]]:
        """The folders that Triton takes for each version: it takes ``2.old`` for version 2, and
        ignores ``01``. It then loads from the folder whose name is exactly the number."""
        folders: dict[int, list[str]] = {}
        for name in self.entries:
            number = _LEADING_NUMBER.match(name)
            is_padded = len(name) > 1 and name.startswith("0")
            if number and not is_padded and (self.folder / name).is_dir():
                folders.setdefault(int(number[0]), []).append(name)
        return folders

    @cached_property
    def versions(self) -> list[int]:
        """The version folders that Triton sees and finds."""
        return sorted(v for v, names in self.claims.items() if str(v) in names and v >= 0)

    @property
    def is_ensemble(self) -> bool:
        config = self.config
        return bool(config.platform == "ensemble" or config.HasField("ensemble_scheduling"))

    @cached_property
    def resolved(self) -> Resolved:
        return backends.resolve(self.config, self.folder)

    @property
    def backend(self) -> str:
        """The backend's name; '' if nothing identifies it."""
        return self.resolved.backend

    @property
    def model_file(self) -> str:
        """The name of the model file in each version folder; '' if it is unknown."""
        return self.resolved.file

    @property
    def parameters(self) -> dict[str, str]:
        return {key: value.string_value for key, value in self.config.parameters.items()}

    @property
    def is_python_based(self) -> bool:
        return self.backend == "python" or (
            self.backend == "onnxruntime" and graph_file.uses_our_backend()
        )

    @cached_property
    def served(self) -> list[int]:
        """The existing versions that the config's policy serves."""
        policy = self.config.version_policy
        if policy.HasField("specific"):
            return [v for v in policy.specific.versions if v in self.versions]
        if policy.HasField("latest"):
            return (
                self.versions[-policy.latest.num_versions :] if policy.latest.num_versions else []
            )
        return self.versions if self.config.HasField("version_policy") else self.versions[-1:]

    @cached_property
    def may_complete(self) -> bool:
        """Whether the backend may add tensors and types that ``completed`` does not have."""
        if self.is_ensemble or self.backend in _NEVER_COMPLETE:
            return False
        if self.backend == "onnxruntime":
            return not any(self.graphs)
        if self.backend != "python":
            return True
        return any(_DEFINES.search(_text(path)) for path in self.files)

    @cached_property
    def files(self) -> list[Path]:
        """The model files of the served versions, if they exist."""
        paths = [self.folder / str(version) / self.model_file for version in self.served]
        return [path for path in paths if self.model_file and path.exists()]

    @cached_property
    def graphs(self) -> list[ReadGraph]:
        """The ONNX graph of each file; empty for other backends."""
        if self.backend != "onnxruntime":
            return []
        return [graph_file.read(path, self.config) for path in self.files]

    @cached_property
    def completed(self) -> ModelConfig:
        """The config as the backend completes it from the newest graph; the config as written, for
        backends whose completion is unknown."""
        graphs = [read.graph for read in self.graphs if read.graph]
        return graph_file.complete(self.config, graphs[-1]) if graphs else self.config


Models = Mapping[str, Model]


def read(repository: ModelRepository) -> Models:
    """Every subfolder, by name: to Triton each is a model."""
    return {model: _read(repository.folder(model)) for model in repository.models()}


def _read(folder: Path) -> Model:
    try:
        entries = tuple(sorted(path.name for path in folder.iterdir()))
    except OSError as error:
        return Model(folder, None, f"cannot be read: {error.strerror}")
    path = folder / CONFIG_FILE
    if path.is_dir():
        return Model(
            folder, None, "is a folder, and Triton crashes when it reads that", entries=entries
        )
    if path.is_symlink() and not path.exists():
        return Model(
            folder, None, f"is a link to {path.readlink()}, which does not exist", entries=entries
        )
    if not path.exists():
        return Model(folder, None, entries=entries)
    try:
        return Model(
            folder, parse(syntax.as_triton_reads(_decoded(path.read_bytes()))), entries=entries
        )
    except (ValueError, OSError) as error:
        return Model(folder, None, str(error), entries=entries)


def _decoded(content: bytes) -> str:
    """The text of a config. Triton reads bytes, and accepts comments in any encoding."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""

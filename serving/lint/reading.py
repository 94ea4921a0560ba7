"""The repository as the linter sees it: every folder, read once, broken ones too."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from modelspec.layout import CONFIG_FILE, version_folders
from modelspec.pbtxt import parse
from serving.repository import model_folders

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
PLATFORMS: Mapping[str, str] = {
    "onnxruntime_onnx": "onnxruntime",
    "tensorrt_plan": "tensorrt",
    "pytorch_libtorch": "pytorch",
    "tensorflow_savedmodel": "tensorflow",
    "tensorflow_graphdef": "tensorflow",
}


@dataclass(frozen=True)
class Model:
    """A folder of the repository. ``written`` is None when there is no config or it does not parse,
    and ``fault`` says why it does not; ``file`` is where it stands in the folder."""

    folder: Path
    written: ModelConfig | None
    fault: str = ""
    file: str = CONFIG_FILE

    @property
    def config(self) -> ModelConfig:
        """What is written, or an empty config: nothing declared, nothing to find."""
        return self.written if self.written is not None else ModelConfig()

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def place(self) -> str:
        return f"{self.name}/{self.file}"

    @cached_property
    def versions(self) -> list[int]:
        """The version folders that Triton sees: it ignores names with a leading zero."""
        return [v for v in version_folders(self.folder) if v and (self.folder / str(v)).is_dir()]

    @property
    def is_ensemble(self) -> bool:
        config = self.config
        return bool(config.platform == "ensemble" or config.HasField("ensemble_scheduling"))

    @property
    def backend(self) -> str:
        """The backend's name; '' when the config leaves it to Triton."""
        return str(self.config.backend) or PLATFORMS.get(self.config.platform, "")

    @property
    def model_file(self) -> str:
        """What lies in each version folder; '' when nobody can know."""
        if self.config.default_model_filename:
            return str(self.config.default_model_filename)
        if self.config.platform == "tensorflow_graphdef":
            return "model.graphdef"
        return DEFAULT_FILES.get(self.backend, "")

    @property
    def parameters(self) -> dict[str, str]:
        return {key: value.string_value for key, value in self.config.parameters.items()}

    @cached_property
    def served(self) -> list[int]:
        """The versions that the config's policy serves, of those that are there."""
        policy = self.config.version_policy
        if policy.HasField("specific"):
            return [v for v in policy.specific.versions if v in self.versions]
        if policy.HasField("all"):
            return self.versions
        return self.versions[-(policy.latest.num_versions or 1) :]


Repository = Mapping[str, Model]


def read(repository: Path) -> Repository:
    """Every sub-folder, by name: to Triton each is a model."""
    return {folder.name: _read(folder) for folder in model_folders(repository)}


def _read(folder: Path) -> Model:
    path = folder / CONFIG_FILE
    if not path.is_file():
        return Model(folder, None)
    try:
        return Model(folder, parse(path.read_text(encoding="utf-8")))
    except ValueError as error:  # UnicodeDecodeError is one
        return Model(folder, None, str(error))

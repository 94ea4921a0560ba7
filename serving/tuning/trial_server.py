"""The test stand: a scratch Triton that serves the pipeline as it is, and beside it, under other
names, the setting on trial. Figures are taken in turns from the two, so that whatever else the
machine does meets both; a model that nobody asks costs memory and no time.
"""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tritonclient.grpc.model_config_pb2 import ModelConfig

from modelspec.layout import CONFIG_FILE, staging_folder
from serving.errors import ServingError
from serving.files import owned_prefix
from serving.launch import LaunchOptions, TritonServer
from serving.pins import as_bytes, pins, repinned, with_versions
from serving.ports import Ports, free_ports
from serving.repository import active_members, active_version, read_config
from serving.tuning.setting import Configs, Setting, applied, setting_of

TRIAL_SUFFIX = ".trial"


class TrialServer:
    """``configs`` are those of the pipeline now, members first, each with the one version that is
    served. Use it as a context manager."""

    def __init__(self, repository: Path, name: str, work_dir: Path) -> None:
        self.name, self._repository = name, repository
        self.versions = {**active_members(repository, name), name: active_version(repository, name)}
        self.configs: Configs = {
            model: with_versions(read_config(repository, model), [version])
            for model, version in self.versions.items()
        }
        self._work_dir = work_dir
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._loaded: list[str] = []

    def __enter__(self) -> Self:
        staging = staging_folder(self._repository)
        staging.mkdir(parents=True, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(dir=staging, prefix=owned_prefix("tune"))
        scratch = Path(self._folder.name) / "repository"
        try:
            for model, config in self.configs.items():
                self._place(scratch, model, config)
            ports = Ports(*free_ports(3))
            self.server = TritonServer(LaunchOptions(scratch, self._work_dir, ports, name="tune"))
            self.server.start()
            self.server.control.load(self.name)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    @property
    def address(self) -> str:
        return self.server.control.address

    @property
    def trial_name(self) -> str:
        return f"{self.name}{TRIAL_SUFFIX}"

    def challenge(self, setting: Setting) -> None:
        """Load the pipeline with this setting as ``trial_name``; ServingError when Triton refuses
        it or runs something else."""
        self._drop()
        names = {model: f"{model}{TRIAL_SUFFIX}" for model in self.configs}
        moved = {model: (names[model], version) for model, version in self.versions.items()}
        for model, config in applied(self.configs, setting).items():
            own = repinned(config, moved)
            own.name = names[model]
            self._place(self.server.options.repository, model, own)
        self._loaded = [*reversed(names.values())]
        self.server.control.load(self.trial_name)
        runs = setting_of({model: self._asked(model, names) for model in self.configs})
        if runs != setting:
            raise ServingError(f"Triton was told {setting.key} and runs {runs.key}")

    def _asked(self, model: str, names: Mapping[str, str]) -> ModelConfig:
        """The config that Triton says it serves the trial's model with, under the usual names."""
        config = self.server.control.config(names[model])
        back = {names[each]: (each, version) for each, version in self.versions.items()}
        return repinned(config, back) if pins(config) else config

    def _drop(self) -> None:
        for model in self._loaded:
            self.server.control.unload(model)
        self._loaded = []

    def _place(self, scratch: Path, model: str, config: ModelConfig) -> None:
        """The model's folder under the config's name: its version linked, and the config."""
        folder, version = scratch / config.name, str(self.versions[model])
        if not folder.is_dir():
            source = self._repository / model / version
            shutil.copytree(source, folder / version, copy_function=_link)
            _copy_labels(self._repository / model, folder)
        (folder / CONFIG_FILE).write_bytes(as_bytes(config))

    def _end(self) -> None:
        if server := getattr(self, "server", None):
            server.stop()
            server.control.close()
        if self._folder:
            self._folder.cleanup()


def _copy_labels(source: Path, folder: Path) -> None:
    """The files beside the config: an output's labels."""
    for path in source.iterdir():
        if path.is_file() and path.name != CONFIG_FILE:
            shutil.copyfile(path, folder / path.name)


def _link(source: str, target: str) -> str:
    Path(target).hardlink_to(source)
    return target

"""A scratch Triton that serves the unchanged pipeline and beside it, under other names, the setting
on trial. The two are measured in alternation, so that whatever else the machine does affects both;
a model without requests costs memory but no time.
"""

import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from tritonclient.grpc.model_config_pb2 import ModelConfig

from modelspec.held import held_folder
from modelspec.layout import CONFIG_FILE
from modelspec.pbtxt import render
from serving.errors import ServingError
from serving.repository.configs import pins, repinned, with_versions
from serving.repository.model_repository import ModelRepository
from serving.triton.launch import LaunchOptions, TritonServer
from serving.triton.ports import Ports, free_ports
from serving.tuning.setting import Configs, Setting, applied, setting_of

TRIAL_SUFFIX = ".trial"


class TrialServer:
    """``configs`` are the pipeline's current configs, members first, each with its one served
    version. Use it as a context manager."""

    def __init__(self, repository: ModelRepository, name: str, work_dir: Path) -> None:
        self.name, self._repository = name, repository
        self.versions = {**repository.pinned_members(name), name: repository.active_version(name)}
        self.configs: Configs = {
            model: with_versions(repository.config(model), [version])
            for model, version in self.versions.items()
        }
        self._work_dir = work_dir
        self._folder = ExitStack()  # which removes it
        self._loaded: list[str] = []

    def __enter__(self) -> Self:
        staging = self._repository.staging
        staging.mkdir(parents=True, exist_ok=True)
        folder = self._folder.enter_context(held_folder(staging, "tune"))
        scratch = ModelRepository(folder / "repository")
        try:
            for model, config in self.configs.items():
                self._write(scratch, model, config)
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
        error_type: type[BaseException] | None,
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

    def load_trial(self, setting: Setting) -> None:
        """Load the pipeline with this setting as ``trial_name``; ServingError if Triton refuses it
        or runs another setting."""
        self._drop()
        names = {model: f"{model}{TRIAL_SUFFIX}" for model in self.configs}
        positions = {model: (names[model], version) for model, version in self.versions.items()}
        for model, config in applied(self.configs, setting).items():
            trial_config = repinned(config, positions)
            trial_config.name = names[model]
            self._write(self.server.options.repository, model, trial_config)
        self._loaded = [*reversed(names.values())]
        self.server.control.load(self.trial_name)
        actual = setting_of({model: self._served_config(model, names) for model in self.configs})
        if actual != setting:
            raise ServingError(f"Triton was given {setting.key} but runs {actual.key}")

    def _served_config(self, model: str, names: Mapping[str, str]) -> ModelConfig:
        """The config that Triton serves the trial's model with, with the original model names."""
        config = self.server.control.config(names[model])
        originals = {names[name]: (name, version) for name, version in self.versions.items()}
        return repinned(config, originals) if pins(config) else config

    def _drop(self) -> None:
        for model in self._loaded:
            self.server.control.unload(model)
        self._loaded = []

    def _write(self, scratch: ModelRepository, model: str, config: ModelConfig) -> None:
        """Create the model's folder under the config's name: its version linked, and the config."""
        folder, version = scratch.folder(config.name), self.versions[model]
        if not folder.is_dir():
            source = self._repository.version_folder(model, version)
            shutil.copytree(source, folder / str(version), copy_function=os.link)
            for path in self._repository.folder(model).iterdir():
                if path.is_file() and path.name != CONFIG_FILE:  # an output's labels
                    shutil.copyfile(path, folder / path.name)
        (folder / CONFIG_FILE).write_bytes(render(config).encode())

    def _end(self) -> None:
        if server := getattr(self, "server", None):
            server.stop()
            server.control.close()
        self._folder.close()

"""A model repository on disk, as one object: configs, versions, pins, config profiles, manifests.

    repository = ModelRepository(Path("model_repository"))
    repository.active_version("mood")  # 7
    repository.pinned_members("mood")  # {"mood_pre": 3, "mood_onnx": 7}

The files are the state: nothing is remembered but parsed configs, and those only as long as their
text is the same. Every change is one rename out of the staging folder beside the repository, since
Triton may look at any moment; whoever changes something has the ``lock``.

A model may have config profiles: ``configs/NAME.pbtxt``, which a Triton started with
``--model-config-name=NAME`` reads *instead of* ``config.pbtxt``. The main config says what is
served: the versions, the pins, endpoint schema and golden sample. A profile only says how. So
placing a main config also syncs the profiles: otherwise a Triton that reads them would serve an old
version.
"""

import itertools
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from tritonclient.grpc.model_config_pb2 import ModelConfig

from modelspec.files import atomic_write, file_sha256, sync_files, sync_folder
from modelspec.layout import CONFIG_FILE, CONFIGS, staging_folder
from modelspec.names import generation_name
from modelspec.parameters import INTERNAL_PARAMETER
from modelspec.pbtxt import parse, render
from serving.errors import ModelLoadFailed, PublishFailed, RepositoryBusy, ServingError, Tampered
from serving.repository.configs import (
    NEWEST,
    is_ensemble,
    newest_pins,
    pins,
    policy_versions,
    synced_with,
    with_versions,
)
from serving.repository.manifest import CACHE_FOLDER, CONFIG_COPY, MANIFEST_FILE, Manifest

CANDIDATE_SUFFIX = ".candidate"
_RUN = secrets.token_hex(4)  # tells this process from others, before it, with its pid
_STAGED = re.compile(r"[^+]*\+(?P<pid>\d+)(\.(?P<run>\w+))?\+[^+]+")
LOCK_WAIT_S, LOCK_POLL_S = 120.0, 0.1


@dataclass(frozen=True)
class Version:
    """One published version of a pipeline; ``manifest`` is None if it was put there by hand."""

    number: int
    is_active: bool
    manifest: Manifest | None
    members: Mapping[str, int]


class ModelRepository:
    """The repository in the folder ``path``, which need not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._parsed: dict[Path, tuple[str, ModelConfig]] = {}  # the text that a config came from

    def __repr__(self) -> str:
        return f"ModelRepository({str(self.path)!r})"

    def __str__(self) -> str:
        return str(self.path)

    # Where things are.

    @property
    def staging(self) -> Path:
        """The folder beside the repository where everything is built before it is renamed in."""
        return staging_folder(self.path)

    def folder(self, model: str) -> Path:
        return self.path / model

    def version_folder(self, model: str, version: int) -> Path:
        return self.path / model / str(version)

    def staged_path(self, what: str) -> Path:
        """A new path in the staging folder for what takes moments. Its name carries its owner, so
        that leftovers of a killed process can be told from work in progress; what takes long is in
        a ``held_folder``."""
        return self.staging / f"{what}+{os.getpid()}.{_RUN}+{secrets.token_hex(4)}"

    @staticmethod
    def is_leftover(path: Path) -> bool:
        """Whether it is a staged path of a process that runs no more; False for any other path."""
        owner = _STAGED.fullmatch(path.name)
        if owner is None:
            return False
        if int(owner["pid"]) == os.getpid():  # a killed container's process had the same one
            return bool(owner["run"] != _RUN)
        return not Path(f"/proc/{owner['pid']}").exists()

    # What is there.

    def models(self) -> list[str]:
        """Every folder, sorted by name: to Triton each is a model."""
        if not self.path.is_dir():
            return []
        return sorted(entry.name for entry in self.path.iterdir() if entry.is_dir())

    def public_models(self) -> list[str]:
        """The models that have a version and are not internal steps or engines, sorted by name.

        A model without a config counts: its backend may complete the config from the model file.
        """
        return [
            model
            for model in self.models()
            if self.versions(model)
            and not (
                self.has_config(model)
                and self.config(model).parameters[INTERNAL_PARAMETER].string_value == "true"
            )
        ]

    def has_config(self, model: str) -> bool:
        return (self.path / model / CONFIG_FILE).is_file()

    def is_published(self, model: str) -> bool:
        """Whether the model has a config and at least one version."""
        return self.has_config(model) and bool(self.versions(model))

    def generations(self, model: str) -> list[str]:
        """The published generations of a member, the newest last: ``mood_onnx``, ``mood_onnx.g2``
        (``generation_name``)."""
        names = (generation_name(model, generation) for generation in itertools.count(1))
        return list(itertools.takewhile(self.is_published, names))

    def require_published(self, model: str) -> None:
        """ServingError names the models that there are."""
        if not self.is_published(model):
            models = ", ".join(self.public_models()) or "none"
            raise ServingError(f"there is no model {model!r} in {self.path}: it has {models}")

    def config(self, model: str) -> ModelConfig:
        """A copy of the model's config; ModelLoadFailed if it does not parse, ServingError if it is
        missing."""
        path = self.path / model / CONFIG_FILE
        try:
            text = path.read_text(encoding="utf-8")
            if path not in self._parsed or self._parsed[path][0] != text:
                self._parsed[path] = text, parse(text)
        except FileNotFoundError:
            raise ServingError(f"there is no model {model!r} in {self.path}") from None
        except ValueError as error:
            raise ModelLoadFailed(model, str(error)) from error
        copy = ModelConfig()
        copy.CopyFrom(self._parsed[path][1])
        return copy

    def versions(self, model: str) -> list[int]:
        """The model's version folders, ascending."""
        folder = self.path / model
        if not folder.is_dir():
            return []
        return sorted(
            int(entry.name)
            for entry in folder.iterdir()
            if entry.is_dir() and entry.name.isdecimal() and entry.name.isascii()
        )

    def active_version(self, model: str) -> int:
        """The version that the model's config serves: the newest listed, or the newest folder; 0 if
        there is none."""
        if not self.is_published(model):
            return 0
        return max(policy_versions(self.config(model)) or self.versions(model))

    def pinned_members(self, pipeline: str) -> dict[str, int]:
        """The models that the pipeline pins now, with their versions; {} for a single model."""
        return newest_pins(self.config(pipeline))

    def pinned_versions(self) -> dict[str, set[int]]:
        """The versions of each model that some pipeline pins now."""
        versions_by_model: dict[str, set[int]] = {}
        for model in self.models():
            if model.endswith(CANDIDATE_SUFFIX) or not self.has_config(model):
                continue
            try:
                config = self.config(model)
            except ModelLoadFailed:
                continue  # Triton does not serve it either
            for member, versions in pins(config).items() if is_ensemble(config) else ():
                versions_by_model.setdefault(member, set()).update(versions - {NEWEST})
        return versions_by_model

    # Published versions and their manifests.

    def published_versions(self, name: str) -> list[Version]:
        """The pipeline's versions on disk, oldest first; ServingError if there are none."""
        self.require_published(name)
        active = self.active_version(name)
        return [
            Version(
                number,
                number == active,
                self.manifest(name, number),
                newest_pins(self.version_config(name, number)),
            )
            for number in self.versions(name)
        ]

    def version_config(self, name: str, number: int) -> ModelConfig:
        """The config that a version was published with: its copy beside the manifest, or, for the
        active version of a pipeline put there by hand, the config itself."""
        copy = self.version_folder(name, number) / CONFIG_COPY
        if copy.is_file():
            return with_versions(parse(copy.read_text(encoding="utf-8")), ())
        config = self.config(name)
        if number == self.active_version(name) or not is_ensemble(config):
            return with_versions(config, ())
        raise PublishFailed(
            f"version {number} of {name} has no manifest, so what it pinned is unknown: choose "
            f"another (tidegate versions {name})"
        )

    def verified_config(self, name: str, number: int) -> ModelConfig:
        """The version's config; Tampered or PublishFailed if it cannot be served as it was
        proved."""
        if number not in self.versions(name):
            numbers = ", ".join(map(str, self.versions(name)))
            raise PublishFailed(f"{name} has no version {number}: it has {numbers}")
        manifest = self.manifest(name, number)
        if manifest:
            self.verify(manifest)
        return self.version_config(name, number)

    def manifest(self, pipeline: str, number: int) -> Manifest | None:
        """The manifest of a version; None if it has none. Tampered if it cannot be read."""
        path = self.version_folder(pipeline, number) / MANIFEST_FILE
        try:
            return Manifest(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            raise Tampered(str(path), "is not a manifest") from None

    def verify(self, manifest: Manifest) -> None:
        """Tampered names the first file that is missing, has changed or was added."""
        for name, digest in manifest.files.items():
            path = self.path / name
            if not path.is_file():
                raise Tampered(name, "is missing")
            if file_sha256(path) != digest:
                raise Tampered(name, "has changed")
        folders = {**manifest.members, manifest.pipeline: manifest.version}
        for model, number in folders.items():
            for path in self.version_folder(model, number).rglob("*"):
                name = path.relative_to(self.path).as_posix()
                is_extra = name not in manifest.files and path.is_file()
                if is_extra and CACHE_FOLDER not in path.parts and path.name != MANIFEST_FILE:
                    raise Tampered(name, "was added")

    # Changing it.

    @contextmanager
    def lock(self, purpose: str, wait_s: float = LOCK_WAIT_S) -> Iterator[None]:
        """Lock the repository against other publishers; RepositoryBusy after ``wait_s`` seconds
        gives the ``purpose`` of the one that has it.

        The kernel releases the lock when its owner ends, even by kill -9.
        """
        path = self.staging / "lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, timeout=wait_s, poll_interval=LOCK_POLL_S)
        try:
            lock.acquire()
        except Timeout:
            owner = path.read_bytes()[:300].decode(errors="replace") or "unknown"
            raise RepositoryBusy(
                f"another process is publishing into {self.path} ({owner}); nothing was changed. "
                "Run the same command again when it is done"
            ) from None
        try:
            path.write_text(f"process {os.getpid()}: {purpose}", encoding="utf-8")
            yield
        finally:
            lock.release()

    def write(self, path: Path, data: bytes) -> None:
        """Make the file hold ``data`` by one rename.

        The temporary file is in the staging folder: anything beside a config would make Triton
        reload all versions of that model. An equal file is left alone, for the same reason.
        """
        if path.is_file() and path.read_bytes() == data:
            return
        atomic_write(path, data, temporary=self.staged_path("file"))
        sync_folder(path.parent)

    def write_config(self, model: str, config: ModelConfig, versions: Iterable[int]) -> None:
        """Write the model's main config, which serves ``versions`` (none: the newest), by one
        rename, then sync its profiles. If the process is killed in between, ``sync_all_profiles``
        catches up before anything else is done."""
        listing = render(with_versions(config, versions))
        self.write(self.path / model / CONFIG_FILE, listing.encode())
        self.sync_profiles(model)

    def list_also(self, additions: Mapping[str, set[int]]) -> None:
        """Make each model list these versions beside those that it lists already."""
        for model, versions in additions.items():
            config = self.config(model)
            in_policy = set(policy_versions(config))
            if in_policy and not versions <= in_policy:
                self.write_config(model, config, in_policy | versions)

    def list_installed(self, model: str, version: int, config: ModelConfig) -> None:
        """Give the model this config, which lists ``version`` beside the versions that are listed
        now and are on disk."""
        in_policy = set(policy_versions(self.config(model))) if self.has_config(model) else set()
        versions = in_policy.intersection(self.versions(model)) | {version}
        self.write_config(model, config, versions)

    def install_version(self, model: str, version: int, source: Path) -> None:
        """Move a staged version folder in by one rename, flushed to the disk before.

        A config that lists no version leaves the choice to Triton, which would take the newest:
        the active one is listed first.
        """
        active = self.active_version(model)
        if active and not policy_versions(config := self.config(model)):
            self.write_config(model, config, [active])
        folder = self.version_folder(model, version)
        folder.parent.mkdir(exist_ok=True)
        sync_files(source)
        source.rename(folder)
        sync_folder(folder.parent)

    def install_copy(
        self, name: str, version: int, config: ModelConfig, *, link: bool = False
    ) -> None:
        """Add a version of the pipeline ``name`` as a separate model, by one rename: ``config`` has
        that model's name, and decides what it serves. With ``link`` the files are not copied but
        linked: for a model that lasts only moments."""
        staged = self.staged_path("copy")
        staged.mkdir()
        (staged / CONFIG_FILE).write_bytes(render(config).encode())
        for profile_name, profile in self.profiles(name).items():
            (staged / CONFIGS).mkdir(exist_ok=True)
            path = staged / CONFIGS / f"{profile_name}.pbtxt"
            path.write_bytes(render(synced_with(config, profile)).encode())
        copy = os.link if link else shutil.copy2
        shutil.copytree(
            self.version_folder(name, version), staged / str(version), copy_function=copy
        )
        staged.rename(self.folder(config.name))

    def remove(self, model: str) -> None:
        self.remove_folder(self.path / model)

    def remove_version(self, model: str, version: int) -> None:
        self.remove_folder(self.version_folder(model, version))

    def remove_folder(self, folder: Path) -> None:
        """Move the folder out of the repository by one rename, then delete it: Triton never sees
        half of it."""
        if not folder.exists():
            return
        trash = self.staged_path("trash")
        folder.rename(trash)
        shutil.rmtree(trash)

    # Config profiles.

    def profile_files(self, model: str) -> list[Path]:
        return sorted((self.path / model / CONFIGS).glob("*.pbtxt"))

    def profiles(self, model: str) -> dict[str, ModelConfig]:
        """The model's config profiles that parse, by name; the linter reports the others, and
        Triton refuses them."""
        profiles = {}
        for path in self.profile_files(model):
            try:
                profiles[path.stem] = parse(path.read_text(encoding="utf-8"))
            except ValueError:
                continue
        return profiles

    def models_by_profile(self) -> dict[str, list[str]]:
        """The models that have each config profile, by the profile's name."""
        models: dict[str, list[str]] = {}
        for model in self.models():
            for path in self.profile_files(model):
                models.setdefault(path.stem, []).append(model)
        return models

    def write_profile(self, model: str, name: str, config: ModelConfig) -> None:
        """Place one config profile by one rename. An equal one is left alone: Triton reloads a
        model when one of its files has changed."""
        path = self.path / model / CONFIGS / f"{name}.pbtxt"
        if path.is_file() and self.profiles(model).get(name) == config:
            return
        path.parent.mkdir(exist_ok=True)
        self.write(path, render(config).encode())

    def write_profiles(
        self, model: str, profiles: Mapping[str, ModelConfig], config: ModelConfig
    ) -> None:
        """Place config profiles, synced with the model's main config or, if it has none yet, with
        the ``config`` that it is to have."""
        main = self.config(model) if self.has_config(model) else config
        for name, profile in profiles.items():
            self.write_profile(model, name, synced_with(main, profile))

    def sync_profiles(self, model: str) -> None:
        """Sync the model's config profiles with its main config; files that would not change are
        not touched."""
        profiles = self.profiles(model)
        if profiles and self.has_config(model):
            main = self.config(model)
            for name, profile in profiles.items():
                self.write_profile(model, name, synced_with(main, profile))

    def sync_all_profiles(self) -> None:
        for model in self.models():
            self.sync_profiles(model)

    def remove_profile(self, model: str, name: str) -> None:
        """Remove a config profile, and its folder with the last one."""
        path = self.path / model / CONFIGS / f"{name}.pbtxt"
        if not path.is_file():
            return
        path.unlink()
        if not any(path.parent.iterdir()):
            path.parent.rmdir()

    # The texts of configs, to restore them byte for byte.

    def config_texts(self, models: Iterable[str]) -> dict[str, str | None]:
        """The text of each model's config: None for a model without a folder, "" for one without a
        config."""
        return {
            model: (
                (self.path / model / CONFIG_FILE).read_text(encoding="utf-8")
                if self.has_config(model)
                else ""
                if self.folder(model).is_dir()
                else None
            )
            for model in models
        }

    def profile_texts(self, models: Iterable[str]) -> dict[str, str]:
        """The texts of the models' config profiles, by their path in the repository."""
        return {
            path.relative_to(self.path).as_posix(): path.read_text(encoding="utf-8")
            for model in models
            for path in self.profile_files(model)
        }

    def restore_profiles(self, models: Iterable[str], texts: Mapping[str, str]) -> None:
        """Restore the models' config profiles to exactly these texts."""
        for model in models:
            for path in self.profile_files(model):
                if path.relative_to(self.path).as_posix() not in texts:
                    self.remove_profile(model, path.stem)
        for name, text in texts.items():
            path = self.path / name
            if path.parent.parent.is_dir():
                path.parent.mkdir(exist_ok=True)
                self.write(path, text.encode())

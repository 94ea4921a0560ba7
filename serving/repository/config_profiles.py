"""The configs beside a model's main one: ``configs/NAME.pbtxt``, which a Triton started with
``--model-config-name=NAME`` reads *instead of* ``config.pbtxt``.

The main config says what is served: the versions, the pins, endpoint schema and golden sample. A
config profile only says how. So code that places a main config also syncs the config profiles:
otherwise a Triton that reads them would serve an old version.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from modelspec.layout import CONFIG_FILE, CONFIGS
from modelspec.parameters import OURS, TUNED_PARAMETER
from modelspec.pbtxt import parse
from serving.repository.files import place
from serving.repository.model_repository import model_folders, read_config
from serving.repository.pins import as_bytes, is_ensemble

TUNED = "tuned"
# Parameters with this prefix are about the model, not about how it is run.


def profile_path(repository: Path, model: str, name: str) -> Path:
    return repository / model / CONFIGS / f"{name}.pbtxt"


def profile_names(repository: Path) -> dict[str, list[str]]:
    """The models that have each config profile, by the profile's name."""
    models: dict[str, list[str]] = {}
    for folder in model_folders(repository):
        for path in profile_files(folder):
            models.setdefault(path.stem, []).append(folder.name)
    return models


def profile_files(folder: Path) -> list[Path]:
    """The config profiles in a model's folder."""
    return sorted((folder / CONFIGS).glob("*.pbtxt"))


def read_profiles(folder: Path) -> dict[str, ModelConfig]:
    """The config profiles that parse, by name; the linter reports the others, and Triton refuses
    them."""
    profiles = {}
    for path in profile_files(folder):
        try:
            profiles[path.stem] = parse(path.read_text(encoding="utf-8"))
        except ValueError:
            continue
    return profiles


def synced_with(main: ModelConfig, profile: ModelConfig) -> ModelConfig:
    """The config profile, synced with the main config: same versions and pins, same endpoint schema
    and golden sample, and no larger batch than was proved."""
    synced = ModelConfig()
    synced.CopyFrom(main if is_ensemble(main) else profile)
    synced.name = main.name
    synced.version_policy.CopyFrom(main.version_policy)
    if not main.HasField("version_policy"):
        synced.ClearField("version_policy")
    synced.max_batch_size = min(main.max_batch_size, profile.max_batch_size)
    for key in [key for key in synced.parameters if key.startswith(OURS)]:
        del synced.parameters[key]
    for key, value in main.parameters.items():
        if key.startswith(OURS) and key != TUNED_PARAMETER:
            synced.parameters[key].CopyFrom(value)
    if TUNED_PARAMETER in profile.parameters:
        synced.parameters[TUNED_PARAMETER].CopyFrom(profile.parameters[TUNED_PARAMETER])
    return synced


def place_config(repository: Path, model: str, config: ModelConfig) -> None:
    """Place the model's main config by one rename, then sync its config profiles. If the process is
    killed in between, ``sync_all`` catches up before anything else is done."""
    place(repository, repository / model / CONFIG_FILE, as_bytes(config))
    sync_configs(repository, model)


def sync_configs(repository: Path, model: str) -> None:
    """Sync the model's config profiles with its main config; files that would not change are not
    touched."""
    folder = repository / model
    profiles = read_profiles(folder)
    if not profiles or not (folder / CONFIG_FILE).is_file():
        return
    main = read_config(repository, model)
    for name, profile in profiles.items():
        place_profile(repository, model, name, synced_with(main, profile))


def sync_all(repository: Path) -> None:
    for folder in model_folders(repository):
        if (folder / CONFIGS).is_dir():
            sync_configs(repository, folder.name)


def place_profile(repository: Path, model: str, name: str, config: ModelConfig) -> None:
    """Place one config profile by one rename. An equal one is left alone: Triton reloads a model
    when one of its files has changed."""
    path = profile_path(repository, model, name)
    if path.is_file() and read_profiles(path.parent.parent).get(name) == config:
        return
    path.parent.mkdir(exist_ok=True)
    place(repository, path, as_bytes(config))


def remove_profile(repository: Path, model: str, name: str) -> None:
    """Remove a config profile, and its folder with the last one."""
    path = profile_path(repository, model, name)
    if not path.is_file():
        return
    path.unlink()
    if not any(path.parent.iterdir()):
        path.parent.rmdir()


def copy_profiles(folder: Path, target: Path, main: ModelConfig) -> None:
    """Write the config profiles of ``folder`` under ``target``, synced with ``main``: for the same
    pipeline under another name."""
    for name, profile in read_profiles(folder).items():
        (target / CONFIGS).mkdir(exist_ok=True)
        path = target / CONFIGS / f"{name}.pbtxt"
        path.write_bytes(as_bytes(synced_with(main, profile)))


def profiles_now(repository: Path, models: Iterable[str]) -> dict[str, str]:
    """The config profiles' texts, by their path in the repository."""
    return {
        path.relative_to(repository).as_posix(): path.read_text(encoding="utf-8")
        for model in models
        for path in profile_files(repository / model)
    }


def put_back(repository: Path, models: Iterable[str], texts: Mapping[str, str]) -> None:
    """Restore the models' config profiles to exactly these texts."""
    for model in models:
        for path in profile_files(repository / model):
            if path.relative_to(repository).as_posix() not in texts:
                remove_profile(repository, model, path.stem)
    for name, text in texts.items():
        if (repository / name).parent.parent.is_dir():
            (repository / name).parent.mkdir(exist_ok=True)
            place(repository, repository / name, text.encode())

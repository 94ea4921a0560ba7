"""Config profiles: ``configs/NAME.pbtxt`` of a model, read and synced with its main config."""

from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from modelspec.layout import CONFIGS
from modelspec.parameters import OURS, TUNED_PARAMETER
from modelspec.pbtxt import parse
from serving.repository.pins import is_ensemble

TUNED = "tuned"


def read_profiles(folder: Path) -> dict[str, ModelConfig]:
    """The config profiles in a model's folder that parse, by name."""
    profiles = {}
    for path in sorted((folder / CONFIGS).glob("*.pbtxt")):
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
    # Parameters with this prefix are about the model, not about how it is run.
    for key in [key for key in synced.parameters if key.startswith(OURS)]:
        del synced.parameters[key]
    for key, value in main.parameters.items():
        if key.startswith(OURS) and key != TUNED_PARAMETER:
            synced.parameters[key].CopyFrom(value)
    if TUNED_PARAMETER in profile.parameters:
        synced.parameters[TUNED_PARAMETER].CopyFrom(profile.parameters[TUNED_PARAMETER])
    return synced

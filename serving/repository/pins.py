"""What a config pins, and configs with other pins: ModelConfig in, ModelConfig out, no files."""

import hashlib
from collections.abc import Iterable, Mapping

from tritonclient.grpc.model_config_pb2 import ModelConfig

from modelspec.parameters import (
    BUCKETS_PARAMETER,
    INTER_OP_THREADS,
    INTRA_OP_THREADS,
    TUNED_PARAMETER,
)
from modelspec.pbtxt import render

NEWEST = -1
# These decide how fast a model answers, not what: an old version may run with their new values.
SERVING_FIELDS = ("version_policy", "instance_group", "dynamic_batching")
SERVING_PARAMETERS = (INTRA_OP_THREADS, INTER_OP_THREADS, TUNED_PARAMETER)


def is_ensemble(config: ModelConfig) -> bool:
    return bool(config.HasField("ensemble_scheduling"))


def pins(config: ModelConfig) -> dict[str, set[int]]:
    """The versions that an ensemble's steps pin, by model; {} for a single model."""
    versions: dict[str, set[int]] = {}
    for step in config.ensemble_scheduling.step:
        versions.setdefault(step.model_name, set()).add(step.model_version)
    return versions


def newest_pins(config: ModelConfig) -> dict[str, int]:
    """The newest version of each model that an ensemble pins; {} for a single model."""
    return {model: max(versions) for model, versions in pins(config).items()}


def repinned(config: ModelConfig, positions: Mapping[str, tuple[str, int]]) -> ModelConfig:
    """The config with each step of a model in ``positions`` moved to that (model, version)."""
    changed = ModelConfig()
    changed.CopyFrom(config)
    for step in changed.ensemble_scheduling.step:
        if step.model_name in positions:
            step.model_name, step.model_version = positions[step.model_name]
    return changed


def with_versions(config: ModelConfig, versions: Iterable[int]) -> ModelConfig:
    """The config with a version policy of exactly these versions; with none, Triton serves the
    newest folder."""
    changed = ModelConfig()
    changed.CopyFrom(config)
    changed.ClearField("version_policy")
    if versions:
        changed.version_policy.specific.versions.extend(sorted(versions))
    return changed


def listed_versions(config: ModelConfig) -> list[int]:
    """The versions that the config's policy names; [] when it names none."""
    return sorted(config.version_policy.specific.versions)


def meaning(config: ModelConfig) -> str:
    """SHA-256 over everything in the config that decides a model's outputs. Two versions of one
    model can be served side by side only if this is equal: Triton has one config for all of
    them."""
    bare = ModelConfig()
    bare.CopyFrom(config)
    bare.ClearField("name")
    for field in SERVING_FIELDS:
        bare.ClearField(field)
    for key in SERVING_PARAMETERS:
        bare.parameters.pop(key, None)
    if BUCKETS_PARAMETER in bare.parameters:  # all but the last one, the longest text
        buckets = bare.parameters[BUCKETS_PARAMETER]
        buckets.string_value = buckets.string_value.rpartition(",")[2]
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()


def as_bytes(config: ModelConfig) -> bytes:
    return render(config).encode()

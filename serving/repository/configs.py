"""What a model's config lists and pins, and the configs made from it: with other versions or pins,
synced with the main config, with committed serving parameters. ModelConfig in, ModelConfig out."""

import hashlib
from collections.abc import Iterable, Mapping

from tritonclient.grpc.model_config_pb2 import ModelConfig

from modelspec.parameters import (
    BUCKETS_PARAMETER,
    INTER_OP_THREADS,
    INTRA_OP_THREADS,
    OURS,
    PADDING_MASK,
    PADDING_VALUE,
    TUNED_PARAMETER,
)

NEWEST = -1
TUNED = "tuned"  # the config profile that a config search writes
# What a commit of tuned serving parameters changes in a main config, beside its instances.
CARRIED_PARAMETERS = (INTRA_OP_THREADS, BUCKETS_PARAMETER)
# These decide how fast a model answers, not what: an old version may run with their new values.
SERVING_FIELDS = ("version_policy", "instance_group", "dynamic_batching")
SERVING_PARAMETERS = (
    INTRA_OP_THREADS,
    INTER_OP_THREADS,
    PADDING_MASK,
    PADDING_VALUE,
    TUNED_PARAMETER,
)


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


def policy_versions(config: ModelConfig) -> list[int]:
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


def is_committed(config: ModelConfig) -> bool:
    """Whether a main config's serving parameters were measured and committed."""
    return TUNED_PARAMETER in config.parameters


def carried(published: ModelConfig, staged: ModelConfig) -> ModelConfig:
    """The staged config with the serving parameters that were committed to the published one, if
    any. The two must have the same meaning (``meaning``)."""
    config = ModelConfig()
    config.CopyFrom(staged)
    if not is_committed(published):
        return config
    config.ClearField("instance_group")
    config.instance_group.extend(published.instance_group)
    if published.HasField("dynamic_batching"):
        delay_us = published.dynamic_batching.max_queue_delay_microseconds
        config.dynamic_batching.max_queue_delay_microseconds = delay_us
    else:
        config.ClearField("dynamic_batching")
    for key in CARRIED_PARAMETERS:
        if key in published.parameters and key in config.parameters:
            config.parameters[key].CopyFrom(published.parameters[key])
    config.parameters[TUNED_PARAMETER].CopyFrom(published.parameters[TUNED_PARAMETER])
    return config

"""Tuned serving parameters in a main config (``tidegate optimize NAME --commit``): what they are,
and how they survive the next conversion."""

from tritonclient.grpc.model_config_pb2 import ModelConfig

from modelspec.parameters import BUCKETS_PARAMETER, INTRA_OP_THREADS, TUNED_PARAMETER

CARRIED_PARAMETERS = (INTRA_OP_THREADS, BUCKETS_PARAMETER)


def is_committed(config: ModelConfig) -> bool:
    """Whether a main config's serving parameters were measured and committed."""
    return TUNED_PARAMETER in config.parameters


def carried(published: ModelConfig, staged: ModelConfig) -> ModelConfig:
    """The staged config with the serving parameters that were committed to the published one, if
    any. The two must have the same meaning (``serving.repository.pins.meaning``)."""
    config = ModelConfig()
    config.CopyFrom(staged)
    if not is_committed(published):
        return config
    config.ClearField("instance_group")
    config.instance_group.extend(published.instance_group)
    if config.HasField("dynamic_batching") and published.HasField("dynamic_batching"):
        delay_us = published.dynamic_batching.max_queue_delay_microseconds
        config.dynamic_batching.max_queue_delay_microseconds = delay_us
    for key in CARRIED_PARAMETERS:
        if key in published.parameters and key in config.parameters:
            config.parameters[key].CopyFrom(published.parameters[key])
    config.parameters[TUNED_PARAMETER].CopyFrom(published.parameters[TUNED_PARAMETER])
    return config

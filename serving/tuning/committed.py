"""Tuned serving parameters in a main config (``tidegate optimize NAME --commit``): what they are,
and how they outlast the next conversion."""

from tritonclient.grpc.model_config_pb2 import ModelConfig

from serving.pins import BUCKETS_PARAMETER, TUNED_PARAMETER
from serving.tuning.setting import THREADS_PARAMETER

CARRIED_PARAMETERS = (THREADS_PARAMETER, BUCKETS_PARAMETER)


def is_committed(config: ModelConfig) -> bool:
    """Whether the serving parameters of a main config were measured and committed."""
    return TUNED_PARAMETER in config.parameters


def carried(published: ModelConfig, staged: ModelConfig) -> ModelConfig:
    """What is staged, with the serving parameters that were committed to what is published; the
    two mean the same (``serving.pins.meaning``). Nothing is carried where nothing was committed."""
    own = ModelConfig()
    own.CopyFrom(staged)
    if not is_committed(published):
        return own
    own.ClearField("instance_group")
    own.instance_group.extend(published.instance_group)
    if own.HasField("dynamic_batching") and published.HasField("dynamic_batching"):
        delay_us = published.dynamic_batching.max_queue_delay_microseconds
        own.dynamic_batching.max_queue_delay_microseconds = delay_us
    for key in CARRIED_PARAMETERS:
        if key in published.parameters and key in own.parameters:
            own.parameters[key].CopyFrom(published.parameters[key])
    own.parameters[TUNED_PARAMETER].CopyFrom(published.parameters[TUNED_PARAMETER])
    return own

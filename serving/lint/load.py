"""What a config demands of the machine: threads, queues, caches."""

import re
from collections.abc import Iterator

from modelspec.parameters import INTRA_OP_THREADS, TUNED_PARAMETER
from serving.lint.finding import Finding, error, info, warning
from serving.lint.reading import Model, Models
from serving.lint.wiring import is_decoupled

THREAD_PARAMETERS = (INTRA_OP_THREADS, "INTRA_OP_THREAD_COUNT")
THREADED = ("onnxruntime", "pytorch")
LONG_DELAY_US = 50_000
_PLACEHOLDER = re.compile(r"\$\{[A-Za-z_]+\}")
_GPU = 1  # ModelInstanceGroup.Kind.KIND_GPU


def check(model: Model, models: Models, cores: int) -> Iterator[Finding]:
    yield from _threads(model, cores)
    yield from _queue(model)
    yield from _placeholders(model)
    config = model.config
    # The steps decide whether an ensemble is decoupled, whatever it says; Triton checks both.
    decoupled = config.model_transaction_policy.decoupled or is_decoupled(model, models)
    if config.response_cache.enable and decoupled:
        yield error(
            "cache-decoupled",
            model.location,
            "is decoupled and wants the response cache: Triton refuses that combination",
            "switch one of them off",
        )


def _threads(model: Model, cores: int) -> Iterator[Finding]:
    config = model.config
    if model.backend not in THREADED:
        return
    instances = sum(g.count or 1 for g in config.instance_group if g.kind != _GPU)
    if config.instance_group and not instances:
        return  # all on GPUs
    instances = instances or 1
    written = next((model.parameters[p] for p in THREAD_PARAMETERS if p in model.parameters), "0")
    threads = int(written) if written.isdecimal() else 0
    is_measured = TUNED_PARAMETER in model.parameters  # tidegate optimize measured that it pays
    if threads == 0 and instances > 1:
        yield warning(
            "threads-unset",
            model.location,
            f"has {instances} instances, each with a thread for every core ({cores} here)",
            f"set parameter {THREAD_PARAMETERS[0]} to {max(1, cores // instances)}",
        )
    elif instances * max(threads, 1) > cores * (2 if is_measured else 1):
        yield warning(
            "threads-over-cores",
            model.location,
            f"has {instances} instances of {max(threads, 1)} threads on {cores} cores, which they "
            "must share",
            "lower the count or the threads until their product is the number of cores",
        )


def _queue(model: Model) -> Iterator[Finding]:
    config = model.config
    batching = config.dynamic_batching
    if batching.HasField("default_queue_policy") or batching.priority_queue_policy:
        yield warning(
            "queue-policy",
            model.location,
            "has a queue policy: with one, Triton 2.51's batcher wakes up to 0.5 s late",
            "delete it, and limit queueing and time in front of Triton",
        )
    if batching.max_queue_delay_microseconds > LONG_DELAY_US:
        yield info(
            "queue-delay",
            model.location,
            f"makes a single request wait {batching.max_queue_delay_microseconds / 1000:g} ms for "
            "others",
            "lower max_queue_delay_microseconds, or measure that it pays",
        )


def _placeholders(model: Model) -> Iterator[Finding]:
    """Config templates (such as TensorRT-LLM's) contain ${...} until a script fills them in."""
    keys = [key for key, value in model.parameters.items() if _PLACEHOLDER.search(value)]
    if keys:
        yield warning(
            "placeholder",
            model.location,
            f"parameters still contain a placeholder: {', '.join(keys[:6])}"
            + (f" and {len(keys) - 6} more" if len(keys) > 6 else ""),
            "fill in the template, or delete what you do not need",
        )

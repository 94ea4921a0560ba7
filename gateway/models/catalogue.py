"""The model catalogue: read from Triton, swapped as a whole, never half-updated."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from tritonclient.grpc import model_config_pb2

from gateway.errors import (
    InvalidRequest,
    NoCapacity,
    NotFound,
    no_model,
)
from gateway.http.json_body import LARGE_BYTES
from gateway.models.compiled_endpoint import CompiledEndpoint
from gateway.models.sequences import SequenceSlots
from gateway.models.short import NOT_SHORT, Short
from gateway.models.token_outputs import TOKENS, TokenOutputs
from modelspec.declaration import Declaration
from modelspec.dtypes import protocol_name
from modelspec.probe import Probe

PROMPT = "text_input"  # of a language model, by the contract of Triton's vLLM backend
TEXT_ROUTES = frozenset({"chat", "completions", "tokenize"})
DEFAULT_IDLE_US = 1_000_000  # Triton's default
# Triton writes these differently in JSON than the gateway, or not at all.
_OWN_JSON = frozenset({"BYTES", "FP16", "BF16"})


class TensorMeta(NamedTuple):
    """A tensor as the config declares it; ``dims`` omit the batch axis, and -1 is any length."""

    name: str
    dtype: str
    dims: tuple[int, ...]
    optional: bool = False


class EngineCapacity(NamedTuple):
    """Of a language model's engine on one server: how many sequences it generates at a time, and
    how many tokens of prompts and continuations it holds for them. 0: it does not say."""

    sequences: int = 0
    tokens: int = 0


UNKNOWN_CAPACITY = EngineCapacity()


@dataclass(frozen=True)
class Model:
    """A model that Triton serves. With an ``endpoint_schema`` it is public and has an endpoint."""

    name: str
    versions: tuple[str, ...]
    max_batch_size: int
    inputs: Mapping[str, TensorMeta]
    outputs: Mapping[str, TensorMeta]
    decoupled: bool
    endpoint_schema: CompiledEndpoint | None
    probe: Probe | None  # its golden sample
    golden_fault: str = ""  # why the config's golden sample cannot be used
    canary_of: str = ""  # the public pipeline whose canary it is
    steps: tuple[str, ...] = ()  # the models that an ensemble's config names
    # How long Triton waits to gather a batch, for it and its steps; None: it gathers none.
    batch_delay_s: float | None = None
    # Plain V2 requests go over the HTTP upstream, and its JSON is passed on.
    uses_http_upstream: bool = False
    # What is short by nature may go to Triton's HTTP API, which does not notice that a client has
    # left.
    short: Short = NOT_SHORT
    sequences: SequenceSlots | None = None  # for a model that keeps state between requests
    deterministic: bool = False  # it says that equal requests get equal responses
    # Of a deterministic model: changes with its config, those of its steps and their versions; ''
    # while these are not known for certain.
    revision: str = ""
    # Likewise: the one version that is ready on the replicas that are not down; '' if they differ.
    only_version: str = ""
    capacity: EngineCapacity = UNKNOWN_CAPACITY  # of a language model

    @property
    def is_language_model(self) -> bool:
        """By the contract of Triton's vLLM backend: its engine has a queue of its own."""
        return self.decoupled and PROMPT in self.inputs

    @cached_property
    def known_requests(self) -> dict[tuple[str, bytes, bytes], Any]:
        """V2 requests that were checked once, by the version that they ask for and the JSON text
        around their elements (``gateway.api.v2.request``)."""
        return {}

    @cached_property
    def tokens(self) -> TokenOutputs:
        return TokenOutputs.of(
            self.outputs, self.endpoint_schema.openai if self.endpoint_schema else {}
        )

    @property
    def may_repeat(self) -> bool:
        """Whether a request may be sent again when it is not known what became of it: a model with
        a golden sample, which it is asked every second, says that asking changes nothing."""
        return self.probe is not None

    @property
    def counts_tokens(self) -> bool:
        """Whether its responses report token counts: only then do token limits apply."""
        return any(self.tokens)


@dataclass(frozen=True)
class Catalogue:
    """All models that clients may call, by name. ``expected`` are those that should be served."""

    models: Mapping[str, Model] = field(default_factory=dict)
    expected: frozenset[str] = frozenset()

    def model(self, name: str, version: str = "") -> Model:
        """The model. Raises NoCapacity if it is missing but expected, else NotFound, which says
        where to look."""
        model = self.models.get(name)
        if model:
            if version and version not in model.versions:
                versions = ", ".join(model.versions)
                raise NotFound(f"model {name!r} has no version {version[:20]!r}: it has {versions}")
            return model
        if name in self.expected:
            # Its server is restarting: a 404 would make clients give up.
            raise NoCapacity(
                f"the model {name!r} is not being served now: try again shortly", retry_after_s=1
            )
        raise no_model(name)

    def endpoint(self, name: str) -> tuple[Model, CompiledEndpoint]:
        """The public model and its endpoint schema. Raises NotFound if it has none."""
        model = self.model(name)
        if model.canary_of:
            raise NotFound(f"{name!r} is a canary: call {model.canary_of!r}")
        if model.endpoint_schema is None:
            raise NotFound(f"the model {name!r} has no endpoint: it is served under /v2 only")
        return model, model.endpoint_schema

    def restricted_to(self, may_read: Callable[[str], bool]) -> "Catalogue":
        """The part of the catalogue that a caller may know about."""
        return Catalogue({name: model for name, model in self.models.items() if may_read(name)})

    @cached_property
    def steps(self) -> Mapping[str, list[str]]:
        """Step -> the pipelines that use it."""
        pipelines: dict[str, list[str]] = {}
        for model in self.models.values():
            for step in model.steps:
                pipelines.setdefault(step, []).append(model.name)
        return pipelines

    @cached_property
    def public(self) -> list[Model]:
        return [m for _, m in sorted(self.models.items()) if m.endpoint_schema and not m.canary_of]

    @cached_property
    def digest(self) -> str:
        """Changes whenever anything that the OpenAPI document shows changes."""
        text = repr(
            [
                (m.name, m.versions, m.endpoint_schema and m.endpoint_schema.schema)
                for m in self.models.values()
            ]
        )
        return hashlib.sha256(text.encode()).hexdigest()


def read_model(config: model_config_pb2.ModelConfig, versions: tuple[str, ...]) -> Model | None:
    """A model from its config; None for an internal one. Raises DeclarationError if its endpoint
    schema cannot be used; a golden sample that cannot be used is the model's ``golden_fault``."""
    declaration = Declaration.of(config)
    if declaration.is_internal:
        return None
    if declaration.error and declaration.endpoint is None:
        raise declaration.error
    inputs = {t.name: _meta(t, t.optional) for t in config.input}
    outputs = {t.name: _meta(t) for t in config.output}
    endpoint, probe = None, declaration.probe
    golden_fault = declaration.error.problem if declaration.error else ""
    if declaration.endpoint:
        endpoint = CompiledEndpoint.compile(declaration.endpoint)
        if not TEXT_ROUTES.isdisjoint(endpoint.openai):
            from gateway.models.text_binding import check

            check(endpoint.openai, inputs, outputs)
        try:
            if probe:
                endpoint.check(probe.golden.request, "")
        except InvalidRequest as error:
            probe = None
            golden_fault = f"has a golden sample that its endpoint refuses: {error}"
    return Model(
        name=config.name,
        versions=versions,
        max_batch_size=config.max_batch_size,
        inputs=inputs,
        outputs=outputs,
        decoupled=config.model_transaction_policy.decoupled,
        endpoint_schema=endpoint,
        canary_of=declaration.canary_of,
        probe=probe,
        golden_fault=golden_fault,
        sequences=sequence_slots(config),
        capacity=EngineCapacity(declaration.max_num_seqs, declaration.kv_cache_tokens),
        batch_delay_s=batch_delay_s(config),
        deterministic=declaration.is_deterministic,
        steps=tuple(step.model_name for step in config.ensemble_scheduling.step),
        short=_short(declaration, config),
        uses_http_upstream=not declaration.is_cancellable
        and TOKENS not in outputs  # the HTTP upstream would not count its tokens
        and not config.HasField("ensemble_scheduling")
        and _OWN_JSON.isdisjoint(t.dtype for t in (*inputs.values(), *outputs.values())),
    )


def _short(declaration: Declaration, config: model_config_pb2.ModelConfig) -> Short:
    """Of a model that may be cancelled only if it has a golden sample: what Triton's HTTP API
    refuses with 400 is asked again over gRPC. Likewise only then are requests sent as one, which
    are sent again if that fails; nor where an output of any length might be as long as another
    one's in the batch."""
    if not declaration.is_cancellable:
        return Short(LARGE_BYTES)
    if not declaration.probe:
        return NOT_SHORT
    is_merged = (
        declaration.short_bytes
        and declaration.is_deterministic
        and config.max_batch_size > 1
        and not any(length < 0 for output in config.output for length in output.dims)
    )
    return Short(declaration.short_bytes, config.max_batch_size if is_merged else 0)


def instance_count(config: model_config_pb2.ModelConfig) -> int:
    """How many instances one server has of the model."""
    return sum(max(1, group.count) * max(1, len(group.gpus)) for group in config.instance_group)


def batch_delay_s(config: model_config_pb2.ModelConfig) -> float | None:
    """How long Triton waits to gather a batch for the model; None if it does not gather any."""
    if not config.HasField("dynamic_batching"):
        return None
    return float(config.dynamic_batching.max_queue_delay_microseconds / 1e6)


def sequence_slots(config: model_config_pb2.ModelConfig) -> SequenceSlots | None:
    """How many sequences one server takes at once, from the model's config; None if it does not
    batch sequences."""
    if not config.HasField("sequence_batching"):
        return None
    batching = config.sequence_batching
    # Each instance has its own batcher.
    per_instance = batching.oldest.max_candidate_sequences or config.max_batch_size
    idle_us = batching.max_sequence_idle_microseconds or DEFAULT_IDLE_US
    return SequenceSlots(max(1, instance_count(config)) * max(1, per_instance), idle_us / 1e6)


def _meta(
    tensor: model_config_pb2.ModelInput | model_config_pb2.ModelOutput, optional: bool = False
) -> TensorMeta:
    return TensorMeta(tensor.name, protocol_name(tensor.data_type), tuple(tensor.dims), optional)

"""What a model's config declares to Tidegate: read in one place, for everybody who asks."""

from dataclasses import dataclass

from tritonclient.grpc.model_config_pb2 import ModelConfig

from modelspec.endpoint_schema import EndpointSchema
from modelspec.errors import DeclarationError
from modelspec.golden import Golden
from modelspec.parameters import (
    CANARY_PARAMETER,
    CANCELLABLE_PARAMETER,
    DETERMINISTIC_PARAMETER,
    ENDPOINT_PARAMETER,
    GOLDEN_PARAMETER,
    INTERNAL_PARAMETER,
    KV_CACHE_TOKENS_PARAMETER,
    MAX_NUM_SEQS_PARAMETER,
    SHORT_BYTES_PARAMETER,
    texts_of,
)
from modelspec.probe import Probe


@dataclass(frozen=True)
class Declaration:
    """A model with an ``endpoint`` is public; ``probe`` is its golden sample.

    ``error`` says what cannot be used. It is never raised by reading: a model whose endpoint schema
    is broken has no ``endpoint``, one whose golden sample is broken no ``probe``, and no other
    model notices.
    """

    endpoint: EndpointSchema | None = None
    probe: Probe | None = None
    error: DeclarationError | None = None
    is_internal: bool = False
    canary_of: str = ""
    is_cancellable: bool = True
    short_bytes: int = 0  # requests of up to so many are short; 0: none is
    is_deterministic: bool = False
    # Of a language model's engine on one server; 0: it does not say.
    max_num_seqs: int = 0
    kv_cache_tokens: int = 0

    @classmethod
    def of(cls, config: ModelConfig) -> "Declaration":
        """Read the parameters of a config. Never raises DeclarationError: see ``error``."""
        texts = texts_of(config.parameters)
        endpoint = probe = error = None
        short_bytes = max_num_seqs = kv_cache_tokens = 0
        try:
            if ENDPOINT_PARAMETER in texts:
                endpoint = endpoint_of(config, texts[ENDPOINT_PARAMETER])
                if GOLDEN_PARAMETER in texts:
                    probe = Probe.of(config, endpoint, Golden.parse(texts[GOLDEN_PARAMETER]))
            short_bytes = _count(texts, SHORT_BYTES_PARAMETER)
            max_num_seqs = _count(texts, MAX_NUM_SEQS_PARAMETER)
            kv_cache_tokens = _count(texts, KV_CACHE_TOKENS_PARAMETER)
        except DeclarationError as problem:
            error = problem.of_model(config.name)
        return cls(
            endpoint,
            probe,
            error,
            is_internal=texts.get(INTERNAL_PARAMETER) == "true",
            canary_of=texts.get(CANARY_PARAMETER, ""),
            is_cancellable=texts.get(CANCELLABLE_PARAMETER) != "false",
            short_bytes=short_bytes,
            is_deterministic=texts.get(DETERMINISTIC_PARAMETER) == "true",
            max_num_seqs=max_num_seqs,
            kv_cache_tokens=kv_cache_tokens,
        )


def _count(texts: dict[str, str], name: str) -> int:
    """A parameter that is a whole number above 0; 0 without it. Raises DeclarationError."""
    text = texts.get(name)
    if text is None:
        return 0
    if not text.isascii() or not text.isdigit() or not int(text):
        raise DeclarationError(
            f"has a parameter {name} that is not a number above 0: {text[:40]!r}",
            "write a whole number above 0, or leave the parameter out",
        )
    return int(text)


def endpoint_of(config: ModelConfig, text: str) -> EndpointSchema:
    """The endpoint schema of a config; DeclarationError if it is bound to tensors that the config
    does not have."""
    endpoint = EndpointSchema.parse(text)
    missing = endpoint.input_tensors - {tensor.name for tensor in config.input}
    missing |= endpoint.output_tensors - {tensor.name for tensor in config.output}
    if missing:
        raise DeclarationError(
            f"has an endpoint schema that is bound to tensors that do not exist: {sorted(missing)}",
            "bind its fields to the model's inputs and outputs",
        )
    return endpoint

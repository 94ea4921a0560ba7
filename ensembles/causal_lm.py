"""Any language model: text -> its continuation, whole or as a stream.

The public model is the engine itself, not an ensemble: the contract of Triton's vLLM backend has
optional inputs and many responses to a request, and in front of a vLLM backend there is no ensemble
either. Its version policy is the pin: one version is listed, and ``NAME/7/`` keeps the config that
serves version 7.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from modelspec.endpoint_schema import EndpointSchema
from modelspec.golden import Golden
from modelspec.hardware import LANGUAGE_MODEL_BACKEND, VLLM
from modelspec.model import Instances, ModelSpec, Pipeline, TensorSpec
from modelspec.parameters import KV_CACHE_TOKENS_PARAMETER, MAX_NUM_SEQS_PARAMETER

MAX_TOKENS, DEFAULT_MAX_TOKENS = 1024, 256
# What the engine takes at a time, for the gateway, which lets tenants take turns at it: what our
# own backend's settings are by default (`max_running`, and `num_kv_blocks` of 32 tokens), and what
# vLLM is told. How much vLLM's KV cache holds is known only where it runs.
MAX_NUM_SEQS, KV_CACHE_TOKENS, VLLM_MAX_NUM_SEQS = 64, 8192, 256

# Of vLLM's sampling parameters, those that the engine on a CPU has: it refuses logit_bias, and more
# log-probabilities than the chosen token's.
TAKES = (
    *("temperature", "top_p", "top_k", "min_p", "seed"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty"),
    *("max_tokens", "min_tokens", "stop", "ignore_eos", "structured_outputs"),
    *("truncate_prompt_tokens", "stop_token_ids"),
)
MAX_LOGPROBS = 0  # alternatives to the chosen token
# The keywords of JSON Schema that it keeps, as `lm_sampling` in the backend checks them.
SCHEMA_KEYWORDS = (
    *("$ref", "$defs", "definitions", "type", "enum", "const", "allOf", "anyOf"),
    *("properties", "required", "additionalProperties"),
    *("items", "prefixItems", "minItems", "maxItems"),
    *("pattern", "format", "minLength", "maxLength"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    *("$schema", "$id", "$comment", "title", "description", "default", "examples"),
    *("deprecated", "readOnly", "writeOnly", "discriminator"),
)

FLAGS = (
    "stream",
    "exclude_input_in_output",
    "return_finish_reason",
    "return_cumulative_logprob",
    "return_logprobs",
    "return_num_input_tokens",
    "return_num_output_tokens",
)
INPUTS = (
    TensorSpec("text_input", "BYTES", (1,)),
    TensorSpec("stream", "BOOL", (1,), optional=True),
    TensorSpec("sampling_parameters", "BYTES", (1,), optional=True),
    *(TensorSpec(name, "BOOL", (1,), optional=True) for name in FLAGS[1:]),
)
# Of our own engine only: token ids as the prompt, instead of a text; the tokenizer's work; and the
# id of a request whose client has left.
OWN_INPUTS = (
    replace(INPUTS[0], optional=True),
    *INPUTS[1:],
    TensorSpec("prompt_token_ids", "INT64", (-1,), optional=True),
    TensorSpec("tokenizer_request", "BYTES", (1,), optional=True),
    TensorSpec("cancel_request", "BYTES", (1,), optional=True),
)
OUTPUTS = (
    TensorSpec("text_output", "BYTES", (-1,)),
    TensorSpec("finish_reason", "BYTES", (-1,)),
    TensorSpec("cumulative_logprob", "FP32", (-1,)),
    TensorSpec("logprobs", "BYTES", (-1,)),
    TensorSpec("num_input_tokens", "UINT32", (1,)),
    TensorSpec("num_output_tokens", "UINT32", (-1,)),
)


@dataclass(frozen=True)
class Declaration:
    """``template`` is the chat template ('' for a model without one), ``variables`` what it may
    name and ``markers`` the tokens that no message may contain; ``context_length`` is that of
    prompt and output together, in tokens; ``backend`` is ours or Triton's vLLM backend."""

    name: str
    golden: Golden
    architecture: str
    context_length: int
    template: str
    variables: Mapping[str, str]
    markers: Sequence[str]
    backend: str = LANGUAGE_MODEL_BACKEND
    card: Mapping[str, Any] = field(default_factory=dict)

    def pipeline(self) -> Pipeline:
        return Pipeline(
            (),
            ModelSpec(
                name=self.name,
                backend=self.backend,
                max_batch_size=0,
                inputs=INPUTS if self.backend == VLLM else OWN_INPUTS,
                outputs=OUTPUTS,
                versions=(1,),
                # vLLM chooses its GPUs itself, by its own settings in model.json.
                instances=Instances(kind="KIND_MODEL" if self.backend == VLLM else "KIND_CPU"),
                decoupled=True,
                parameters=self._capacity(),
                endpoint_schema=self._endpoint_schema(),
                golden=self.golden,
            ),
        )

    def _capacity(self) -> dict[str, str]:
        if self.backend == VLLM:
            return {MAX_NUM_SEQS_PARAMETER: str(VLLM_MAX_NUM_SEQS)}
        return {
            MAX_NUM_SEQS_PARAMETER: str(MAX_NUM_SEQS),
            KV_CACHE_TOKENS_PARAMETER: str(KV_CACHE_TOKENS),
        }

    def _endpoint_schema(self) -> EndpointSchema:
        own: dict[str, Any] = {}
        routes: dict[str, Any] = {}
        binding: dict[str, Any] = {
            "max_tokens": MAX_TOKENS,
            "default_max_tokens": DEFAULT_MAX_TOKENS,
        }
        if self.backend != VLLM:
            binding["takes"] = list(TAKES)
            binding["cancel"] = "cancel_request"
            binding["max_logprobs"] = MAX_LOGPROBS
            binding["schema_keywords"] = list(SCHEMA_KEYWORDS)
            own = {"tokens": "prompt_token_ids"}
            routes = {"tokenize": {}}
        chat = {
            **binding,
            "template": self.template,
            "variables": dict(self.variables),
            "markers": list(self.markers),
            "tools": {"parser": "hermes"},
        }
        routes["completions"] = {**binding, **own}
        if self.template:
            routes["chat"] = chat
        return EndpointSchema(
            purpose="Continue a text. For a conversation, use POST /v1/chat/completions.",
            request={
                "type": "object",
                "required": ["text_input"],
                "additionalProperties": False,
                "properties": {
                    "text_input": {
                        "type": "string",
                        "description": f"The text to continue; with what is generated, at most "
                        f"{self.context_length} tokens.",
                        "x-tensor": "text_input",
                    },
                    "sampling_parameters": {
                        "type": "string",
                        "description": "JSON, by the names of vLLM's SamplingParams.",
                        "x-tensor": "sampling_parameters",
                    },
                    "exclude_input_in_output": {
                        "type": "boolean",
                        "description": "Leave the text to continue out of the response.",
                        "x-tensor": "exclude_input_in_output",
                    },
                },
            },
            response={
                "type": "object",
                "required": ["text_output"],
                "properties": {"text_output": {"type": "string", "x-tensor": "text_output"}},
            },
            example=self.golden.request,
            card={
                **self.card,
                "architecture": self.architecture,
                "versions": "The model has no steps: its version policy is the pin.",
            },
            openai=routes,
        )


def declare(
    name: str, metadata: Mapping[str, Any], golden: Golden, card: Mapping[str, Any]
) -> Pipeline:
    """The pipeline of a model with the metadata ``architecture``, ``context_length``, ``template``,
    ``variables`` and ``markers``."""
    return Declaration(name, golden=golden, card=card, **metadata).pipeline()

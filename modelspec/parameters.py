"""The parameters in a model's ``config.pbtxt`` that have a meaning to Tidegate.

Triton passes them on unread, and the gateway gets them with the rest of the config. Those that
begin with ``tidegate.`` are ours; the others belong to a backend or a step, and are named here
because several packages read them.
"""

from collections.abc import Mapping
from typing import Any

OURS = "tidegate."
ENDPOINT_PARAMETER = "tidegate.endpoint"  # JSON: see modelspec.endpoint_schema
GOLDEN_PARAMETER = "tidegate.golden"  # JSON: see modelspec.golden
INTERNAL_PARAMETER = "tidegate.internal"  # "true": an engine or a step, which the gateway hides
CANARY_PARAMETER = "tidegate.canary"  # the public pipeline whose canary this model is
# "false": no request is worth cancelling, so the gateway may send plain ones over HTTP/1.1, where
# Triton does not notice that a client has left.
CANCELLABLE_PARAMETER = "tidegate.cancellable"
# A number of bytes: a request whose input tensors have no more than that together is done so soon
# that it is not worth cancelling either, though longer ones are. Without it no request is.
SHORT_BYTES_PARAMETER = "tidegate.short_bytes"
# "true": equal requests to one version get equal responses (within the tolerance of its proof), and
# a request changes nothing: the gateway may answer one from its response cache.
DETERMINISTIC_PARAMETER = "tidegate.deterministic"
# Of a language model: how many sequences its engine generates at a time on one server (vLLM's
# max_num_seqs), and how many tokens of prompts and continuations its KV cache holds for them.
MAX_NUM_SEQS_PARAMETER = "tidegate.max_num_seqs"
KV_CACHE_TOKENS_PARAMETER = "tidegate.kv_cache_tokens"
TUNED_PARAMETER = "tidegate.tuned"  # JSON: where and how the serving parameters were measured
REVISION_PARAMETER = (
    "tidegate.afresh"  # makes a config differ, so that Triton loads the model again
)

INTRA_OP_THREADS, INTER_OP_THREADS = "intra_op_thread_count", "inter_op_thread_count"
# Of a sequence model's engine on a CPU: the input that is 0 in the padding, and the others' value.
PADDING_MASK, PADDING_VALUE = "padding_mask", "padding_value"
BUCKETS_PARAMETER = "buckets"  # of the tokenizer step: the lengths that texts are padded to

# The name of no model: a stream that is asked for it answers by itself, so that its end is seen.
NO_MODEL = "tidegate.none"


def texts_of(parameters: Mapping[str, Any]) -> dict[str, str]:
    """The string values of a ModelConfig's ``parameters``, by name."""
    return {name: parameter.string_value for name, parameter in parameters.items()}

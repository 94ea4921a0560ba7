"""What every pipeline that begins with a text shares: the tokenizer step's tensors and fields."""

from collections.abc import Mapping, Sequence

from ensembles.engine import onnx_engine
from modelspec.model import Batching, ModelSpec, TensorSpec
from modelspec.names import Role, member_name
from modelspec.parameters import SHORT_BYTES_PARAMETER

TEXT = TensorSpec("text", "BYTES", (1,))
TOKENS = (
    TensorSpec("input_ids", "INT64", (-1,)),
    TensorSpec("attention_mask", "INT64", (-1,)),
)
# For an encoder, a text of so many bytes is less work than it is worth to cancel.
SHORT_TEXT = {SHORT_BYTES_PARAMETER: "256"}
TOKEN_COUNT = TensorSpec("token_count", "INT32", (1,))
TOKEN_SPAN = TensorSpec("token_span", "INT32", (-1, 2))

TRUNCATE = {
    "type": "boolean",
    "default": False,
    "description": "Cut a text that is too long instead of refusing it.",
    "x-parameter": "truncate",
}

LANGUAGE = {
    "type": "string",
    "description": "The text's language (en, zh), if it should not be detected.",
    "x-parameter": "language",
}


def text_request(description: str, **more: Mapping[str, object]) -> dict[str, object]:
    """The request's schema: ``text``, ``truncate``: whether to cut one that is too long, and the
    schemas of ``more`` properties."""
    text = {
        "type": "string",
        "minLength": 1,
        "maxLength": 65536,
        "description": description,
        "x-tensor": "text",
    }
    return {
        "type": "object",
        "required": ["text"],
        "additionalProperties": False,
        "properties": {"text": text, "truncate": TRUNCATE, **more},
    }


def text_engine(
    pipeline: str,
    output: TensorSpec,
    buckets: Sequence[int],
    pad_id: int,
    max_batch_size: int,
) -> ModelSpec:
    """``NAME_onnx`` behind a ``text_tokenizer`` with the same buckets and ``pad_id``."""
    padding = ("attention_mask", pad_id)
    return onnx_engine(pipeline, TOKENS, (output,), max_batch_size, buckets, padding)


def text_tokenizer(
    pipeline: str, buckets: Sequence[int], pad_id: int, max_batch_size: int, spans: bool = False
) -> ModelSpec:
    """``NAME_pre``: text -> token tensors, padded to one of ``buckets`` (lengths in tokens); with
    ``spans`` also where in the text each token begins and ends."""
    return ModelSpec(
        name=member_name(pipeline, Role.PRE),
        backend="python",
        step="tokenize_text",
        max_batch_size=max_batch_size,
        inputs=(TEXT,),
        outputs=(*TOKENS, TOKEN_COUNT, *([TOKEN_SPAN] if spans else [])),
        batching=Batching(),
        parameters={"buckets": ",".join(map(str, buckets)), "pad_id": str(pad_id)},
        versions=(1,),
        internal=True,
    )

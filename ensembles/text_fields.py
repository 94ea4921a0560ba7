"""What every pipeline that begins with a text shares: the tokeniser step's tensors and fields."""

from modelspec.model import TensorSpec

TEXT = TensorSpec("text", "BYTES", (1,))
TOKENS = (
    TensorSpec("input_ids", "INT64", (-1,)),
    TensorSpec("attention_mask", "INT64", (-1,)),
)
TOKEN_COUNT = TensorSpec("token_count", "INT32", (1,))

TRUNCATE = {
    "type": "boolean",
    "default": False,
    "description": "Cut a text that is too long instead of refusing it.",
    "x-parameter": "truncate",
}

"""``text_embedding``: text -> a normalised 384-dimensional vector (all-MiniLM-L6-v2).

text -> text_embedding_pre (tokenise, pad to a bucket) -> text_embedding_onnx -> vector
"""

from ensembles.text_fields import TEXT, TOKEN_COUNT, TOKENS, TRUNCATE
from modelspec.face import Face, Golden
from modelspec.model import Batching, Instances, ModelSpec, Pipeline, StepSpec, TensorSpec

# all-MiniLM-L6-v2 was trained and is evaluated at 256 tokens (sentence_bert_config.json).
BUCKETS = (16, 32, 64, 128, 256)
MAX_BATCH_SIZE = 64

_VECTOR = TensorSpec("sentence_embedding", "FP32", (384,))

TOKENIZER = ModelSpec(
    name="text_embedding_pre",
    backend="python",
    step="tokenize_text",
    max_batch_size=MAX_BATCH_SIZE,
    inputs=(TEXT,),
    outputs=(*TOKENS, TOKEN_COUNT),
    batching=Batching(),
    parameters={"buckets": ",".join(map(str, BUCKETS))},
    versions=(1,),
    internal=True,
)

ENGINE = ModelSpec(
    name="text_embedding_onnx",
    backend="onnxruntime",
    max_batch_size=MAX_BATCH_SIZE,
    inputs=TOKENS,
    outputs=(_VECTOR,),
    instances=Instances(count=2),  # 2 instances of 1 thread beat 1 of 2 on a 2-core machine
    batching=Batching(),
    parameters={"intra_op_thread_count": "1", "inter_op_thread_count": "1"},
    versions=(1,),
    internal=True,
)

FACE = Face(
    purpose="Turn a text into a vector: near vectors (by dot product) mean near meanings.",
    request={
        "type": "object",
        "required": ["text"],
        "additionalProperties": False,
        "properties": {
            "text": {
                "type": "string",
                "minLength": 1,
                "maxLength": 65536,
                "description": "English text of at most 256 tokens (about 1,000 characters).",
                "x-tensor": "text",
            },
            "truncate": TRUNCATE,
        },
    },
    response={
        "type": "object",
        "required": ["embedding", "token_count"],
        "properties": {
            "embedding": {
                "type": "array",
                "items": {"type": "number"},
                "minItems": 384,
                "maxItems": 384,
                "description": "Unit length.",
                "x-tensor": "sentence_embedding",
            },
            "token_count": {
                "type": "integer",
                "description": "Tokens that the model read, special tokens included.",
                "x-tensor": "token_count",
            },
        },
    },
    example={"text": "Where is my parcel?"},
    card={
        "model": "sentence-transformers/all-MiniLM-L6-v2",
        "license": "Apache-2.0",
        "languages": ["en"],
        "limits": "At most 256 tokens; trained on English: other languages embed poorly.",
    },
    openai={
        "embeddings": {"text": "text", "vector": "sentence_embedding", "tokens": "token_count"}
    },
)

# From sentence-transformers; the proof recomputes it and refuses a conversion that differs.
GOLDEN = Golden(
    request={"text": "Where is my parcel?"},
    expect={
        "sentence_embedding": [
            0.03395,
            -0.01403,
            0.04374,
            -0.02395,
            0.06031,
            0.01265,
            0.0231,
            0.00287,
        ],
        "token_count": [7],
    },
    tolerance=1e-3,
)

PIPELINE = Pipeline(
    members=(TOKENIZER, ENGINE),
    public=ModelSpec(
        name="text_embedding",
        backend="ensemble",
        max_batch_size=MAX_BATCH_SIZE,
        inputs=(TEXT,),
        outputs=(_VECTOR, TOKEN_COUNT),
        steps=(
            StepSpec(
                "text_embedding_pre",
                1,
                {"text": "text"},
                {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "token_count": "token_count",
                },
            ),
            StepSpec(
                "text_embedding_onnx",
                1,
                {"input_ids": "input_ids", "attention_mask": "attention_mask"},
                {"sentence_embedding": "sentence_embedding"},
            ),
        ),
        face=FACE,
        golden=GOLDEN,
    ),
)

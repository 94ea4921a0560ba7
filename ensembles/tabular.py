"""Any tabular pipeline: one tensor per column -> labels or a value.

columns -> NAME_onnx. There is no other step: stacking and sorting are in the graph. Texts for a
scikit-learn vectorizer go through NAME_pre, which runs it: text -> terms -> NAME_onnx.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ensembles.engine import onnx_engine
from modelspec.endpoint_schema import EndpointSchema
from modelspec.golden import Golden
from modelspec.model import Batching, ModelSpec, Pipeline, StepSpec, TensorSpec
from modelspec.names import Role, member_name
from modelspec.parameters import CANCELLABLE_PARAMETER, SHORT_BYTES_PARAMETER

MAX_BATCH_SIZE = 64
# Rows of so many bytes, texts among them, are less work than it is worth to cancel.
SHORT_ROWS = {SHORT_BYTES_PARAMETER: "4096"}
# A request takes far less time than checking whether it was cancelled: the gateway reads this.
NOT_CANCELLABLE = {CANCELLABLE_PARAMETER: "false"}
# A missing text on the wire: a Unicode noncharacter, which no text can contain.
MISSING_TEXT = "\ufdd0"
# More categories than this would clutter the documentation.
CATEGORY_LIMIT = 200


@dataclass(frozen=True)
class Declaration:
    """``columns`` are mappings with name, tensor, is_text, categories, open, nullable,
    values; ``number`` is the V2 dtype of those that are not texts; ``labels`` is
    empty for a regression."""

    name: str
    columns: Sequence[Mapping[str, Any]]
    number: str
    labels: Sequence[str]
    golden: Golden
    card: Mapping[str, Any] = field(default_factory=dict)
    texts: Sequence[Mapping[str, Any]] = ()

    def pipeline(self) -> Pipeline:
        inputs = (*self._direct, *self._terms)
        engine = onnx_engine(self.name, inputs, self._outputs, MAX_BATCH_SIZE)
        steps = (self._vectorizer(),) if self.texts else ()
        return Pipeline((*steps, engine), self._public())

    def _vectorizer(self) -> ModelSpec:
        return ModelSpec(
            name=member_name(self.name, Role.PRE),
            backend="python",
            step="vectorize_text",
            max_batch_size=MAX_BATCH_SIZE,
            inputs=self._texts,
            outputs=self._terms,
            batching=Batching(),
            versions=(1,),
            internal=True,
        )

    @property
    def _texts(self) -> tuple[TensorSpec, ...]:
        """The texts that the vectorizers read."""
        names = dict.fromkeys(str(text["tensor"]) for text in self.texts)
        return tuple(TensorSpec(name, "BYTES", (1,)) for name in names)

    @property
    def _terms(self) -> tuple[TensorSpec, ...]:
        """The outputs of the vectorizers: ids, then values."""
        ids = [TensorSpec(text["ids"], "INT64", (-1,)) for text in self.texts]
        return (*ids, *(TensorSpec(text["values"], "FP64", (-1,)) for text in self.texts))

    @property
    def _direct(self) -> tuple[TensorSpec, ...]:
        """The columns that the engine itself reads."""
        direct = {column["tensor"] for column in self.columns if column.get("direct", True)}
        return tuple(tensor for tensor in self._inputs if tensor.name in direct)

    @property
    def _inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(column["tensor"], "BYTES" if column["is_text"] else self.number, (1,))
            for column in self.columns
        )

    @property
    def _outputs(self) -> tuple[TensorSpec, ...]:
        if not self.labels:
            return (TensorSpec("value", "FP32", (1,)),)
        shape = (len(self.labels),)
        return TensorSpec("label", "BYTES", shape), TensorSpec("score", "FP32", shape)

    def _public(self) -> ModelSpec:
        engine = StepSpec(
            member_name(self.name, Role.ENGINE),
            1,
            _same_names((*self._direct, *self._terms)),
            _same_names(self._outputs),
        )
        texts = StepSpec(
            member_name(self.name, Role.PRE), 1, _same_names(self._texts), _same_names(self._terms)
        )
        return ModelSpec(
            name=self.name,
            backend="ensemble",
            max_batch_size=MAX_BATCH_SIZE,
            inputs=self._inputs,
            outputs=self._outputs,
            steps=(texts, engine) if self.texts else (engine,),
            # A vectorizer may get a long text, whose request is worth cancelling.
            parameters=SHORT_ROWS if self.texts else NOT_CANCELLABLE,
            endpoint_schema=self._endpoint_schema(),
            golden=self.golden,
            deterministic=True,
        )

    def _endpoint_schema(self) -> EndpointSchema:
        result = f"which of {len(self.labels)} labels fit" if self.labels else "what value fits"
        return EndpointSchema(
            purpose=f"Say {result} a row of {len(self.columns)} columns.",
            request=self._request(),
            response=_LABELS if self.labels else _VALUE,
            example=self.golden.request,
            card=self.card,
        )

    def _request(self) -> dict[str, Any]:
        names = [column["name"] for column in self.columns]
        return {
            "type": "object",
            "required": names,
            "additionalProperties": False,
            "properties": {column["name"]: _field(column) for column in self.columns},
        }


def declare(
    name: str, metadata: Mapping[str, Any], golden: Golden, card: Mapping[str, Any]
) -> Pipeline:
    """The pipeline of a model with the metadata ``columns``, ``number`` and ``labels``."""
    return Declaration(name, golden=golden, card=card, **metadata).pipeline()


def _same_names(tensors: Sequence[TensorSpec]) -> dict[str, str]:
    return {tensor.name: tensor.name for tensor in tensors}


def _field(column: Mapping[str, Any]) -> dict[str, Any]:
    return _text_field(column) if column["is_text"] else _number_field(column)


def _number_field(column: Mapping[str, Any]) -> dict[str, Any]:
    binding: dict[str, Any] = {"x-tensor": column["tensor"]}
    values = list(column.get("values", ()))
    is_enum = not column["open"] and 0 < len(values) <= CATEGORY_LIMIT
    if not column["nullable"]:
        return {"type": "number", **({"enum": values} if is_enum else {}), **binding}
    missing = "null: missing (in V2's binary form and over gRPC: NaN)."
    enum = {"enum": [*values, None]} if is_enum else {}
    return {"type": ["number", "null"], **enum, "description": missing, **binding}


def _text_field(column: Mapping[str, Any]) -> dict[str, Any]:
    binding: dict[str, Any] = {"x-tensor": column["tensor"]}
    json_type: Any = "string"
    if column["nullable"]:
        json_type = ["string", "null"]
        description = "null: missing (over V2 and gRPC: the text U+FDD0)."
        binding |= {"description": description, "x-null": MISSING_TEXT}
    categories = list(column["categories"])
    if column["open"] or not 0 < len(categories) <= CATEGORY_LIMIT:
        examples = {"examples": categories[:5]} if categories else {}
        return {"type": json_type, "maxLength": 65536, **examples, **binding}
    null = [None] if column["nullable"] else []
    return {"type": json_type, "enum": [*categories, *null], **binding}


_LABELS = {
    "type": "object",
    "required": ["labels"],
    "properties": {
        "labels": {
            "type": "array",
            "description": "The likeliest first.",
            "items": {
                "type": "object",
                "required": ["label", "score"],
                "properties": {
                    "label": {"type": "string", "x-tensor": "label"},
                    "score": {"type": "number", "x-tensor": "score"},
                },
            },
        },
    },
}
_VALUE = {
    "type": "object",
    "required": ["value"],
    "properties": {"value": {"type": "number", "x-tensor": "value"}},
}

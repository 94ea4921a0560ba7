"""A pipeline of a model on a table, of any name: one tensor a column -> labels or a value.

columns -> NAME_onnx. There is no other step: stacking and sorting are in the graph. Texts that a
vectorizer of scikit-learn reads go through NAME_pre, which runs it: text -> terms -> NAME_onnx.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ensembles.engine import onnx_engine
from modelspec.endpoint_schema import EndpointSchema
from modelspec.golden import Golden
from modelspec.model import Batching, ModelSpec, Pipeline, StepSpec, TensorSpec

MAX_BATCH_SIZE = 64
# A request takes far less time than asking whether it was cancelled: the gateway heeds this.
SHORT = {"tidegate.short": "true"}
# A missing text on the wire: a code point that Unicode keeps out of texts for ever.
MISSING_TEXT = "\ufdd0"
# More categories than this would bury the documentation.
MOST_CATEGORIES = 200


@dataclass(frozen=True)
class Declaration:
    """``columns`` are mappings with name, tensor, is_text, categories, open, nullable,
    blank_missing, values; ``number`` is the V2 type of those that are no text; ``labels`` are empty
    for a regression."""

    name: str
    columns: Sequence[Mapping[str, Any]]
    number: str
    labels: Sequence[str]
    golden: Golden
    card: Mapping[str, Any] = field(default_factory=dict)
    texts: Sequence[Mapping[str, Any]] = ()

    def pipeline(self) -> Pipeline:
        read = (*self._direct, *self._terms)
        engine = onnx_engine(self.name, read, self._outputs, MAX_BATCH_SIZE)
        steps = (self._vectorizer(),) if self.texts else ()
        return Pipeline((*steps, engine), self._public())

    def _vectorizer(self) -> ModelSpec:
        return ModelSpec(
            name=f"{self.name}_pre",
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
        """What the vectorizers make of them."""
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
            f"{self.name}_onnx",
            1,
            _same_names((*self._direct, *self._terms)),
            _same_names(self._outputs),
        )
        texts = StepSpec(f"{self.name}_pre", 1, _same_names(self._texts), _same_names(self._terms))
        return ModelSpec(
            name=self.name,
            backend="ensemble",
            max_batch_size=MAX_BATCH_SIZE,
            inputs=self._inputs,
            outputs=self._outputs,
            steps=(texts, engine) if self.texts else (engine,),
            # A vectorizer may be given a long text: worth cancelling.
            parameters={} if self.texts else SHORT,
            endpoint_schema=self._face(),
            golden=self.golden,
        )

    def _face(self) -> EndpointSchema:
        what = f"which of {len(self.labels)} labels fit" if self.labels else "what value fits"
        return EndpointSchema(
            purpose=f"Say {what} a row of {len(self.columns)} columns.",
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
    name: str, facts: Mapping[str, Any], golden: Golden, card: Mapping[str, Any]
) -> Pipeline:
    """The pipeline of a model whose facts are ``columns``, ``number`` and ``labels``."""
    return Declaration(name, golden=golden, card=card, **facts).pipeline()


def _same_names(tensors: Sequence[TensorSpec]) -> dict[str, str]:
    return {tensor.name: tensor.name for tensor in tensors}


def _field(column: Mapping[str, Any]) -> dict[str, Any]:
    return _text_field(column) if column["is_text"] else _number_field(column)


def _number_field(column: Mapping[str, Any]) -> dict[str, Any]:
    bound: dict[str, Any] = {"x-tensor": column["tensor"]}
    known = list(column.get("values", ()))
    few = not column["open"] and 0 < len(known) <= MOST_CATEGORIES
    if not column["nullable"]:
        return {"type": "number", **({"enum": known} if few else {}), **bound}
    missing = "null: missing (in V2's binary form and over gRPC: NaN)."
    allowed = {"enum": [*known, None]} if few else {}
    return {"type": ["number", "null"], **allowed, "description": missing, **bound}


def _text_field(column: Mapping[str, Any]) -> dict[str, Any]:
    bound: dict[str, Any] = {"x-tensor": column["tensor"]}
    kind: Any = "string"
    if column["nullable"]:
        kind = ["string", "null"]
        said = "null: missing (over V2 and gRPC: the text U+FDD0)."
        if column["blank_missing"]:
            said = f"An empty text: missing. {said}"
        bound |= {"description": said, "x-null": MISSING_TEXT}
    known = list(column["categories"])
    if column["open"] or not 0 < len(known) <= MOST_CATEGORIES:
        known_few = {"examples": known[:5]} if known else {}
        return {"type": kind, "maxLength": 65536, **known_few, **bound}
    blank = [""] if column["blank_missing"] and "" not in known else []
    gone = [None] if column["nullable"] else []
    return {"type": kind, "enum": [*known, *blank, *gone], **bound}


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

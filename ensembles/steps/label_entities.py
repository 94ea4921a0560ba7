"""Token logits -> the entities of a text (a step that runs inside Triton).

Inputs ``logits`` FP32 [n, tokens, labels], ``token_span`` INT32 [n, tokens, 2] (start and end of
each token in the text, in Unicode code points; -1 for tokens that are not in the text) and ``text``
BYTES [n, 1]. Outputs ``count`` INT32 [n, 1] and, for each entity, ``entity`` BYTES (its text),
``start`` and ``end`` INT32, ``label`` BYTES and ``score`` FP32, all [n, k]: ``k`` is the largest
count in the request, at least 1, and elements beyond a row's count are empty or 0.

Tokens are joined as transformers' pipeline joins them with ``aggregation_strategy="simple"``: each
token has its likeliest label; consecutive tokens with the same tag are one entity, unless the later
one begins another (``B-``); its score is the mean of theirs, and ``O`` is not an entity.

Files beside this module: ``labels.json``, a list of names in the model's order.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

try:  # exists only inside Triton's Python stub
    import triton_python_backend_utils as pb_utils
except ImportError:
    pb_utils = None

NO_ENTITY = "O"


@dataclass(frozen=True)
class Entity:
    """``start`` and ``end`` are indexes of code points in the text, ``end`` the first after it."""

    entity: str
    start: int
    end: int
    label: str
    score: float


@dataclass(frozen=True)
class _Token:
    start: int
    end: int
    label: str
    score: np.float32


class EntityFinder:
    """Finds the entities of texts; ``labels`` are in the model's order."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = list(labels)

    def __call__(
        self, logits: np.ndarray, span: np.ndarray, texts: Sequence[bytes]
    ) -> list[list[Entity]]:
        """The entities of each text, in its order, from ``logits`` FP32 [n, tokens, labels] and
        ``span`` INT32 [n, tokens, 2]; ValueError when the shapes do not match, or for logits that
        are not finite."""
        expected = (*span.shape[:2], len(self._labels))
        if logits.shape != expected or len(texts) != len(logits):
            raise ValueError(
                f"the engine returned {logits.shape}, not {expected} for {len(texts)} texts"
            )
        return [
            self._entities(scores, spans, text.decode("utf-8"))
            for scores, spans, text in zip(logits, span, texts, strict=True)
        ]

    def _entities(self, logits: np.ndarray, span: np.ndarray, text: str) -> list[Entity]:
        of_text = span[:, 0] >= 0
        if not np.isfinite(logits[of_text]).all():
            raise ValueError("the engine returned numbers that are not finite")
        tokens = self._tokens(logits[of_text], span[of_text])
        entities = (_entity(group, text) for group in _groups(tokens))
        return [entity for entity in entities if entity.label != NO_ENTITY]

    def _tokens(self, logits: np.ndarray, span: np.ndarray) -> list[_Token]:
        exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
        scores = exponentials / exponentials.sum(axis=-1, keepdims=True)
        best = scores.argmax(axis=-1)
        return [
            _Token(int(start), int(end), self._labels[label], row[label])
            for row, label, (start, end) in zip(scores, best, span, strict=True)
        ]


def _tag(label: str) -> str:
    return label[2:] if label.startswith(("B-", "I-")) else label


def _groups(tokens: Sequence[_Token]) -> Iterator[list[_Token]]:
    """Runs of consecutive tokens with the same tag; a token with ``B-`` always begins a new one."""
    group: list[_Token] = []
    for token in tokens:
        same_tag = group and _tag(token.label) == _tag(group[-1].label)
        if group and not (same_tag and not token.label.startswith("B-")):
            yield group
            group = []
        group.append(token)
    if group:
        yield group


def _entity(group: Sequence[_Token], text: str) -> Entity:
    start, end = group[0].start, group[-1].end
    # As transformers names the group: what follows the first hyphen, whatever precedes it.
    label = group[0].label.split("-", 1)[-1]
    score = float(np.mean([token.score for token in group]))
    return Entity(text[start:end], start, end, label, score)


def as_tensors(entities_by_text: Sequence[Sequence[Entity]]) -> dict[str, np.ndarray]:
    """The entities of each text as the output tensors."""
    shape = (len(entities_by_text), max(1, *map(len, entities_by_text)) if entities_by_text else 1)
    tensors = {
        "entity": np.full(shape, b"", dtype=object),
        "start": np.zeros(shape, dtype=np.int32),
        "end": np.zeros(shape, dtype=np.int32),
        "label": np.full(shape, b"", dtype=object),
        "score": np.zeros(shape, dtype=np.float32),
    }
    for row, entities in enumerate(entities_by_text):
        for column, entity in enumerate(entities):
            for name, value in vars(entity).items():
                tensors[name][row, column] = value.encode() if isinstance(value, str) else value
    count = np.array([[len(entities)] for entities in entities_by_text], dtype=np.int32)
    return {**tensors, "count": count}


class TritonPythonModel:
    """Triton's entry point: token logits in, entities out."""

    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"]) / args["model_version"]
        labels = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
        self._find = EntityFinder(labels)

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        logits, span, texts = (
            pb_utils.get_input_tensor_by_name(request, name).as_numpy()
            for name in ("logits", "token_span", "text")
        )
        try:
            tensors = as_tensors(self._find(logits, span, list(texts.reshape(-1))))
        except ValueError as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, values) for name, values in tensors.items()]
        )

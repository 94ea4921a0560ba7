"""A message's vector -> the nearest answers of a knowledge base (a step that runs inside Triton).

Inputs ``sentence_embedding`` FP32 [n, width] and ``text`` BYTES [n, 1]. Outputs, for each message:
``reply`` and ``source`` BYTES [n, 1], ``confidence`` FP32 [n, 1] (the cosine of the nearest entry),
``hand_over`` BOOL [n, 1], ``from`` BYTES [n, 1] (``knowledge_base`` or ``none``), and the nearest
passages: ``passage_count`` INT32 [n, 1], ``passage_text``, ``passage_question`` and
``passage_source`` BYTES [n, k], ``passage_score`` FP32 [n, k].

Files beside this module: ``vectors.npy`` FP32 [entries, width], each of length 1, and
``knowledge.json``: the entries (``text``, ``question``, ``source``), the two thresholds, and what
is said when nothing is known, in English (``en``) and in Chinese (``zh``): in the one that the
request's parameter ``language`` names, else in the message's. Entries with the same answer and
source are one passage.
"""

import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

try:  # exists only inside Triton's Python stub
    import triton_python_backend_utils as pb_utils
except ImportError:
    pb_utils = None

KNOWLEDGE_BASE, NONE = "knowledge_base", "none"
TEXTS = ("text", "question", "source")  # of a passage
READ_CHARACTERS = 4096  # of a message, to tell its language
# As route_text weighs them: a Chinese character says about as much as three letters, one of the
# grammar twice as much, because names in a sentence of another language have none.
HAN_WEIGHT, GRAMMAR_WEIGHT = 3, 6
GRAMMAR = frozenset("我你您他她它们這这那哪个個的了吗嗎呢吧么麼什怎想请請有没沒不是在给給把被")


class NearestAnswers:
    """A knowledge base: ``confident`` is the least cosine of an answer that is given as it is, and
    ``possible`` the least cosine of a passage that may help."""

    def __init__(self, vectors: np.ndarray, knowledge: dict[str, Any], passages: int) -> None:
        self._entries = knowledge["entries"]
        if vectors.ndim != 2 or len(vectors) != len(self._entries) or not len(vectors):
            raise ValueError(f"{len(self._entries)} entries have vectors of shape {vectors.shape}")
        self._vectors = vectors.astype(np.float32)
        self._confident = float(knowledge["confident"])
        self._possible = float(knowledge["possible"])
        self._unknown = dict(knowledge["unknown"])
        self._passages = passages

    def __call__(
        self, messages: np.ndarray, texts: Sequence[str], language: str = ""
    ) -> dict[str, np.ndarray]:
        """The outputs for vectors FP32 [n, width] of these texts, whose ``language`` is told by
        their characters if it is empty or not one that we speak. Raises ValueError for other
        shapes, and for numbers that are not finite."""
        if messages.ndim != 2 or messages.shape[1] != self._vectors.shape[1]:
            width = self._vectors.shape[1]
            raise ValueError(f"the embedding model returned {messages.shape}, not [n, {width}]")
        if not np.isfinite(messages).all():
            raise ValueError("the embedding model returned numbers that are not finite")
        cosines = messages @ self._vectors.T
        spoken = language if language in self._unknown else ""
        rows = [
            self._answer(row, spoken or language_of(text))
            for row, text in zip(cosines, texts, strict=True)
        ]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def _answer(self, cosines: np.ndarray, language: str) -> dict[str, np.ndarray]:
        nearest = self._nearest(cosines)
        best = nearest[0]
        confidence = float(cosines[best])
        is_known = confidence >= self._confident
        entry = self._entries[best]
        shown = [index for index in nearest if cosines[index] >= self._possible]
        blank = self._passages - len(shown)
        texts = {
            f"passage_{name}": _bytes([self._entries[index][name] for index in shown], blank)
            for name in TEXTS
        }
        scores = [float(cosines[index]) for index in shown] + [0.0] * blank
        return {
            "reply": _bytes([entry["text"] if is_known else self._unknown[language]]),
            "source": _bytes([entry["source"] if is_known else ""]),
            "confidence": np.array([confidence], dtype=np.float32),
            "hand_over": np.array([not is_known]),
            "from": _bytes([KNOWLEDGE_BASE if is_known else NONE]),
            "passage_count": np.array([len(shown)], dtype=np.int32),
            **texts,
            "passage_score": np.array(scores, dtype=np.float32),
        }

    def _nearest(self, cosines: np.ndarray) -> list[int]:
        """The nearest entries that say different things, the nearest first; of two that are equally
        near, the earlier one."""
        nearest: dict[tuple[str, str], int] = {}
        for index in np.argsort(-cosines, kind="stable"):
            entry = self._entries[index]
            nearest.setdefault((entry["text"], entry["source"]), int(index))
            if len(nearest) == self._passages:
                break
        return list(nearest.values())


def language_of(text: str) -> str:
    """``zh`` if more of the text is in Chinese than in another script, else ``en``. Japanese, which
    has Chinese characters too, is not Chinese."""
    text = unicodedata.normalize("NFKC", text[:READ_CHARACTERS])
    letters = [character for character in text if character.isalpha()]
    names = [unicodedata.name(letter, "") for letter in letters]
    han = sum(name.startswith("CJK ") for name in names)
    grammar = sum(letter in GRAMMAR for letter in letters)
    weight = HAN_WEIGHT * (han - grammar) + GRAMMAR_WEIGHT * grammar
    is_japanese = any(name.startswith(("HIRAGANA", "KATAKANA LETTER")) for name in names)
    return "zh" if weight > len(names) - han and not is_japanese else "en"


def _bytes(texts: list[str], blank: int = 0) -> np.ndarray:
    return np.array([text.encode() for text in texts] + [b""] * blank, dtype=object)


class TritonPythonModel:
    """Triton's entry point: vectors in, answers out."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        folder = Path(args["model_repository"]) / args["model_version"]
        knowledge = json.loads((folder / "knowledge.json").read_text(encoding="utf-8"))
        vectors = np.load(folder / "vectors.npy")
        passages = int(parameters["passages"]["string_value"])
        self._answer = NearestAnswers(vectors, knowledge, passages)

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        vectors, texts = (
            pb_utils.get_input_tensor_by_name(request, name).as_numpy()
            for name in ("sentence_embedding", "text")
        )
        language = str(json.loads(request.parameters() or "{}").get("language", ""))
        try:
            messages = [text.decode() for text in texts.reshape(-1)]
            outputs = self._answer(vectors, messages, language)
        except ValueError as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, array) for name, array in outputs.items()]
        )

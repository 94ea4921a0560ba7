"""Token logits -> the entities of a text (a step that runs inside Triton).

Inputs ``logits`` FP32 [n, tokens, labels], ``token_span`` INT32 [n, tokens, 2] (start and end of
each token in the text, in Unicode code points; -1 for tokens that are not in the text) and ``text``
BYTES [n, 1]. Outputs ``count`` INT32 [n, 1] and, for each entity, ``entity`` BYTES (its text),
``start`` and ``end`` INT32, ``label`` BYTES and ``score`` FP32, all [n, k]: ``k`` is the largest
count in the request, at least 1, and elements beyond a row's count are empty or 0.

Tokens are joined as transformers' pipeline joins them with ``aggregation_strategy="simple"``: each
token has its likeliest label; consecutive tokens with the same tag are one entity, unless the later
one begins another (``B-``); its score is the mean of theirs, and ``O`` is not an entity.

If the request has the parameter ``redact``, the output ``redacted`` BYTES [n, 1] is the text with a
label such as ``[PER]`` in place of each entity, except for times and quantities, and of each
telephone number, mail address, card number and Chinese identity number; else it is empty. It ends
where the model stopped reading a text that was cut.

Files beside this module: ``labels.json``, a list of names in the model's order.
"""

import json
import re
import unicodedata
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
# What tells nothing of a person, as the usual corpora call it.
NOT_REDACTED = frozenset(
    ("TIME", "DATE", "MONEY", "PERCENT", "QUANTITY", "ORDINAL", "CARDINAL", "LANGUAGE")
)


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


class Redactor:
    """Replaces names, and numbers and addresses that tell who somebody is, by their labels. A word
    of which a model marked a part, or parts with different labels, is replaced as a whole.

    Patterns look at the text as a reader sees it: full-width digits are digits, and characters of
    no width are not there.
    """

    def __call__(self, text: str, entities: Sequence[Entity], span: np.ndarray) -> str:
        """The text from the first token to the last one that the model read. ``span`` INT32
        [tokens, 2] is where the tokens are."""
        read = span[span[:, 0] >= 0]
        if not len(read):
            return ""
        first, last = int(read[:, 0].min()), int(read[:, 1].max())
        names = [
            (*_whole_words(text, entity.start, entity.end), entity.label)
            for entity in entities
            if entity.label.upper() not in NOT_REDACTED and entity.end > entity.start
        ]
        begin = max(0, first - _LONGEST_NUMBER)
        numbers = [
            (begin + start, begin + end, label)
            for start, end, label in personal_numbers(text[begin : last + _LONGEST_NUMBER])
        ]
        redacted, position = [], first
        for start, end, label in _without_overlap([*numbers, *names]):
            if end > position and start < last:
                redacted += [text[position : max(start, position)], f"[{label}]"]
                position = end
        return "".join([*redacted, text[position:last]])


def _whole_words(text: str, start: int, end: int) -> tuple[int, int]:
    """The span with the rest of the words that it begins and ends in: half a name would tell the
    whole. Only scripts with spaces between words have such a rest."""
    while 0 < start < len(text) and _is_in_word(text[start]) and _is_in_word(text[start - 1]):
        start -= 1
    while 0 < end < len(text) and _is_in_word(text[end - 1]) and _is_in_word(text[end]):
        end += 1
    return start, end


def _is_in_word(character: str) -> bool:
    if character.isascii():
        return character.isalpha()
    name = unicodedata.name(character, "")
    return name.startswith(("LATIN ", "GREEK ", "CYRILLIC ", "COMBINING "))


_Span = tuple[int, int, str]  # start and end in code points, and a label

_LONGEST_NUMBER = 320  # a mail address; characters of no width come on top
_MAIL = re.compile(
    r"(?<![A-Za-z0-9._%+'-])[A-Za-z0-9._%+'-]{1,254}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,8}"
)
# Digits in groups that one space or hyphen separates; the last may end with an identity number's X.
_GROUPS = re.compile(r"(?<![0-9])[0-9]+(?:[ -][0-9]+)*(?:[Xx](?![0-9A-Za-z]))?")
_GROUP = re.compile(r"[0-9]+[Xx]?")
_PHONE = re.compile(
    r"(?<![0-9])(?:"
    r"(?:(?:\+|00)?86[ -]?)?1[3-9][0-9](?:[ -]?[0-9]{4}){2}"  # a Chinese mobile telephone
    r"|(?:\+86[ -]?)?\(?0[1-9][0-9]{1,2}\)?[ -]?[2-9][0-9]{2,3}[ -]?[0-9]{4}"  # and a fixed line
    r"|[48]00[ -]?[0-9]{3,4}[ -]?[0-9]{3,4}"
    r"|\+[1-9](?:[ .()-]{0,2}[0-9]){6,14}"  # an international number
    r"|00[ -]?[1-9](?:[ .()-]{0,2}[0-9]){8,13}"  # and one as it is dialled
    r"|\(?[2-9][0-9]{2}\)?[ .-]{1,2}[2-9][0-9]{2}[ .-][0-9]{4}"  # an American one
    r"|\(?0[0-9]{2,5}\)?[ -][0-9]{3,4}(?:[ -]?[0-9]{3,4})?"  # a British one
    r"|0[1-37][0-9]{9}"  # without spaces
    r")(?![0-9])"
)
_CARD_DIGITS = range(13, 20)
_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)  # the sums of the digits of 2 * digit
_IDENTITY_DIGITS = 18
_IDENTITY_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_IDENTITY = re.compile(
    r"[1-8][0-9]{5}(?:18|19|20)[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])[0-9]{3}[0-9X]"
)


def personal_numbers(text: str) -> list[_Span]:
    """Mail addresses, identity and card numbers (those whose checksum is right) and telephone
    numbers, in the order of the text, with the labels EMAIL, ID, CARD and PHONE."""
    seen, origin = _as_seen(text)
    spans = [(*match.span(), "EMAIL") for match in _MAIL.finditer(seen)]
    for match in _GROUPS.finditer(seen):
        spans += _checked_numbers(match)
    spans += [(*match.span(), "PHONE") for match in _PHONE.finditer(seen)]
    return [
        (origin[start], origin[end - 1] + 1, label) for start, end, label in _without_overlap(spans)
    ]


def _as_seen(text: str) -> tuple[str, list[int]]:
    """The text without characters of no width, in their ordinary forms, and the index in the text
    of each character."""
    seen, origin = [], []
    for index, character in enumerate(text):
        if character.isascii():
            plain = character
        elif unicodedata.category(character) == "Cf":
            continue
        else:
            plain = unicodedata.normalize("NFKC", character)
            if len(plain) != 1:
                plain = character
            elif unicodedata.category(plain) in ("Pd", "Zs"):
                plain = "-" if unicodedata.category(plain) == "Pd" else " "
        seen.append(plain)
        origin.append(index)
    return "".join(seen), origin


def _checked_numbers(match: re.Match[str]) -> Iterator[_Span]:
    """The longest runs of whole groups of digits that are an identity or a card number."""
    groups = [one.span() for one in _GROUP.finditer(match.string, *match.span())]
    index = 0
    while index < len(groups):
        begin, label, number, end_index = groups[index][0], "", "", index
        for last in range(index, len(groups)):
            start, end = groups[last]
            number += match.string[start:end].upper()
            if len(number) > _CARD_DIGITS[-1]:
                break
            if _is_identity(number):
                label, end_index = "ID", last
            elif _is_card(number):
                label, end_index = "CARD", last
        if label:
            yield begin, groups[end_index][1], label
        index = end_index + 1


def _is_identity(number: str) -> bool:
    """A Chinese identity number with its checksum (GB 11643, ISO 7064 MOD 11-2)."""
    if len(number) != _IDENTITY_DIGITS or not _IDENTITY.fullmatch(number):
        return False
    total = sum(
        int(digit) * weight for digit, weight in zip(number, _IDENTITY_WEIGHTS, strict=False)
    )
    return number[-1] == "10X98765432"[total % 11]


def _is_card(number: str) -> bool:
    """As many digits as a card number has, and Luhn's checksum."""
    if len(number) not in _CARD_DIGITS or not number.isdecimal() or len(set(number)) == 1:
        return False
    doubled = (_DOUBLED[int(digit)] for digit in number[-2::-2])
    return (sum(map(int, number[-1::-2])) + sum(doubled)) % 10 == 0


def _without_overlap(spans: Sequence[_Span]) -> list[_Span]:
    """In the order of the text; spans that overlap are one, with the label of the first given."""
    merged: list[tuple[int, int, int, str]] = []
    ordered = sorted((start, end, rank, label) for rank, (start, end, label) in enumerate(spans))
    for start, end, rank, label in ordered:
        if merged and start < merged[-1][1]:
            first, last, first_rank, first_label = merged[-1]
            rank, label = min((rank, label), (first_rank, first_label))
            merged[-1] = (first, max(end, last), rank, label)
        else:
            merged.append((start, end, rank, label))
    return [(start, end, label) for start, end, _, label in merged]


def wants_redaction(parameters: str) -> bool:
    """Whether the request's parameters (JSON, or "") set ``redact``."""
    value = json.loads(parameters).get("redact", False) if parameters else False
    return value is True or str(value).lower() == "true"


def as_tensors(
    entities_by_text: Sequence[Sequence[Entity]], redacted: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """The entities of each text, and the ``redacted`` texts if there are any, as the output
    tensors."""
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
    texts = redacted or [""] * len(entities_by_text)
    encoded = np.array([[text.encode()] for text in texts], dtype=object).reshape(-1, 1)
    return {**tensors, "count": count, "redacted": encoded}


class TritonPythonModel:
    """Triton's entry point: token logits in, entities out."""

    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"]) / args["model_version"]
        labels = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
        self._find, self._redact = EntityFinder(labels), Redactor()

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        logits, span, texts = (
            pb_utils.get_input_tensor_by_name(request, name).as_numpy()
            for name in ("logits", "token_span", "text")
        )
        texts = list(texts.reshape(-1))
        redacted = None
        try:
            entities_by_text = self._find(logits, span, texts)
            if wants_redaction(request.parameters()):
                redacted = [
                    self._redact(text.decode("utf-8"), entities, spans)
                    for text, entities, spans in zip(texts, entities_by_text, span, strict=True)
                ]
            tensors = as_tensors(entities_by_text, redacted)
        except ValueError as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, values) for name, values in tensors.items()]
        )

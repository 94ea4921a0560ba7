"""Sample texts built from a vectorizer's own vocabulary, and texts on which vectorizers differ."""

import unicodedata
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

# For any vocabulary: case, accents, single letters, punctuation, other scripts, digits, marks.
PLAIN = (
    "I am a cat, e.g. x-ray 7 UP!",
    "ÄPFEL äpfel Straße STRASSE naïve café CAFÉ résumé",
    "cafe\u0301 n\u0303andu\u0301 ﬁne ﬂow",
    "очень хороший товар, ПЛОХОЕ качество",
    "很 好 的 产品 日本語 テキスト",
    "don't can't it's O'Neil l'eau",
    "user_name@example.com http://a.b/c?d=1 #tag 3.14 1,000 2nd",
    "\u0130stanbul ISPARTA \u0131spanak",
    "word\nline\ttab\u00a0space\u200bjoin",
    "😀 good 👍🏽 ok",
    "!!! ... ???",
    " ",
)
SEPARATORS = (" a ", ", ", " the ", "-", " я ", "\n", "_", " 1 ")
T = TypeVar("T")


def sample_texts(words: Sequence[str], rng: np.random.Generator, max_texts: int) -> Iterator[str]:
    """Yield at most ``max_texts`` texts: as many words of the vocabulary as fit, non-ASCII and
    short ones first, in texts of one to many words, with case and accents varied."""
    yield from PLAIN
    if not words:
        return
    unusual = [word for word in words if not word.isascii() or len(word) < 2 or " " in word]
    usual = [word for word in words if word.isascii() and len(word) > 1 and " " not in word]
    limit = max(3, max_texts - len(PLAIN) - 28)
    singles = [*_sampled(unusual, limit // 3, rng), *_sampled(usual, limit // 3, rng)]
    for index, word in enumerate(singles):
        yield _altered(word, index)
    # Only n-grams depend on what separates two words of a phrase.
    phrases = [word.split() for word in words if " " in word.strip()]
    for index, parts in enumerate(_sampled(phrases, 16, rng)):
        yield SEPARATORS[index % len(SEPARATORS)].join(parts)
    for _ in range(6):
        chosen = rng.choice(np.array(words, dtype=np.str_), 5)
        yield " ".join(map(str, chosen))
        yield ", ".join(map(str, chosen)) + " the a of I."
    remaining = [word for word in words if word not in set(singles)]
    size = max(12, -(-len(remaining) // max(1, limit - len(singles))))
    for start in range(0, min(len(remaining), size * max(0, limit - len(singles))), size):
        yield " ".join(remaining[start : start + size])


def _sampled(words: Sequence[T], limit: int, rng: np.random.Generator) -> list[T]:
    if len(words) <= limit:
        return list(words)
    positions = np.sort(rng.choice(len(words), limit, replace=False))
    return [words[index] for index in positions]


def _altered(word: str, index: int) -> str:
    match index % 5:
        case 0:
            return word
        case 1:
            return word.upper()
        case 2:
            return f"{word.capitalize()}!"
        case 3:
            return unicodedata.normalize("NFD", word)
    plain = unicodedata.normalize("NFKD", word)
    return "".join(char for char in plain if not unicodedata.combining(char)) or word

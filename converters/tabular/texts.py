"""Texts made from a vectorizer's own vocabulary, and of what vectorizers differ in."""

import unicodedata
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

# Whatever the vocabulary: case, accents, one letter, punctuation, other scripts, digits, marks.
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
BETWEEN = (" a ", ", ", " the ", "-", " я ", "\n", "_", " 1 ")
T = TypeVar("T")


def sample_texts(words: Sequence[str], rng: np.random.Generator, most: int) -> Iterator[str]:
    """At most ``most`` texts: each word of the vocabulary that there is room for, the ones that are
    not ASCII and the shortest first, in texts of one to many words, cased and accented anew."""
    yield from PLAIN
    if not words:
        return
    odd = [word for word in words if not word.isascii() or len(word) < 2 or " " in word]
    rest = [word for word in words if word.isascii() and len(word) > 1 and " " not in word]
    room = max(3, most - len(PLAIN) - 28)
    few = [*_spread(odd, room // 3, rng), *_spread(rest, room // 3, rng)]
    for index, word in enumerate(few):
        yield _dressed(word, index)
    # What stands between two words of a phrase is seen in n-grams alone.
    phrases = [word.split() for word in words if " " in word.strip()]
    for index, parts in enumerate(_spread(phrases, 16, rng)):
        yield BETWEEN[index % len(BETWEEN)].join(parts)
    for _ in range(6):
        chosen = rng.choice(np.array(words, dtype=np.str_), 5)
        yield " ".join(map(str, chosen))
        yield ", ".join(map(str, chosen)) + " the a of I."
    left = [word for word in words if word not in set(few)]
    size = max(12, -(-len(left) // max(1, room - len(few))))
    for start in range(0, min(len(left), size * max(0, room - len(few))), size):
        yield " ".join(left[start : start + size])


def _spread(words: Sequence[T], most: int, rng: np.random.Generator) -> list[T]:
    if len(words) <= most:
        return list(words)
    positions = np.sort(rng.choice(len(words), most, replace=False))
    return [words[place] for place in positions]


def _dressed(word: str, index: int) -> str:
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

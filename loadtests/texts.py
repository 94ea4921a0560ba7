"""Real texts to send: English dialogue from the package ``chatterbot-corpus`` (BSD licence).

Read from where pip installed it. 1,898 distinct texts of natural length: half have at most 6
words, one in ten has more than 15, and some are paragraphs and code.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from modelspec.packages import package_folder

# The model reads 256 tokens, and the corpus's code has 2.6 characters per token: three texts are
# too long. They would rightly be refused, and counted as failures.
LIMIT_CHARACTERS = 600
_GOLDEN = (math.sqrt(5) - 1) / 2


class CorpusMissing(Exception):
    """The corpus is not installed; the message says how to get it."""


def real_texts() -> list[str]:
    """Every distinct English text of the corpus that fits the model."""
    files = sorted((_corpus_folder() / "english").glob("*.yml"))
    texts = dict.fromkeys(text for file in files for text in _lines(file))
    return [text for text in texts if len(text) <= LIMIT_CHARACTERS]


def endless(texts: Sequence[str]) -> Iterator[str]:
    """Every text once before any repeats, with neighbours from different topics; deterministic,
    so that two runs send the same texts."""
    step = _step(len(texts))
    index = 0
    while True:
        yield texts[index]
        index = (index + step) % len(texts)


def _step(count: int) -> int:
    """A stride that visits all ``count`` indices and spreads any stretch of them evenly."""
    step = max(1, round(count * _GOLDEN))
    while math.gcd(step, count) != 1:
        step += 1
    return step


def _corpus_folder() -> Path:
    package = package_folder("chatterbot_corpus")
    if package is None:
        raise CorpusMissing(
            "the texts to send are in the package chatterbot-corpus, which is not installed: "
            "pip install 'tidegate[load]'"
        )
    return package / "data"


def _lines(file: Path) -> Iterator[str]:
    import yaml

    conversations = yaml.safe_load(file.read_text(encoding="utf-8"))["conversations"]
    lines = (str(line).strip() for conversation in conversations for line in conversation)
    return (line for line in lines if line)

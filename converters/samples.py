"""Real sentences to prove conversions on, from the package ``chatterbot-corpus`` (BSD licence).

Nothing of the corpus is copied into this repository; it is read where pip installed it.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from converters.errors import SourceMissing

# Customer questions and answers, and general knowledge for longer sentences.
TOPICS = ("tech_support", "money", "trivia", "science", "psychology")


def default_texts(limit: int = 256) -> list[str]:
    """Distinct English sentences, spread evenly over the topics, at most ``limit``."""
    by_topic = [_sentences(corpus_folder() / "english" / f"{topic}.yml") for topic in TOPICS]
    share = -(-limit // len(by_topic))
    chosen = [text for sentences in by_topic for text in _spread(sentences, share)]
    return list(dict.fromkeys(chosen))[:limit]


def text_of_words(texts: Sequence[str], words: int) -> str:
    """Whole texts joined until there are ``words`` words: a real text of a wanted length."""
    joined: list[str] = []
    for text in texts:
        joined += text.split()
        if len(joined) >= words:
            break
    return " ".join(joined[:words])


def corpus_folder() -> Path:
    """The corpus's data; SourceMissing says how to get it."""
    package = importlib.util.find_spec("chatterbot_corpus")
    if package is None or package.origin is None:
        raise SourceMissing(
            "the default samples are in the package chatterbot-corpus, which is not installed: "
            "pip install 'tidegate[convert]'"
        )
    return Path(package.origin).parent / "data"


def _sentences(path: Path) -> list[str]:
    import yaml

    conversations = yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]
    lines = (str(line).strip() for talk in conversations for line in talk)
    return list(dict.fromkeys(line for line in lines if line))


def _spread(texts: Sequence[str], count: int) -> list[str]:
    step = max(1, len(texts) // count)
    return list(texts[::step])[:count]

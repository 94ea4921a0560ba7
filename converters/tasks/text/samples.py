"""Real sentences for proofs, from the package ``chatterbot-corpus`` (BSD licence).

Nothing of the corpus is copied into this repository; it is read where pip installed it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from converters.errors import SourceMissing
from modelspec.packages import package_folder

# Customer questions and answers, and general knowledge for longer sentences.
TOPICS = ("tech_support", "money", "trivia", "science", "psychology")

# Each has names or places, so that a tagger has something to find. The family emoji is one
# character of several code points; the last lines have tabs, NFD and direction marks.
_MULTILINGUAL = (
    "Angela Merkel flew from Berlin to São Paulo on Friday ✈️.",
    "北京大学的王小明昨天去了上海。",
    "田中さんは東京駅で新幹線に乗りました🚄",
    "서울에서 김민수 씨를 만났어요.",
    "Где находится Эрмитаж в Санкт-Петербурге?",
    "أين تقع مدينة القاهرة؟",
    "שלום, אני דוד מירושלים",
    "नमस्ते, मैं दिल्ली से राहुल हूँ।",
    "👩‍👩‍👧 The García family 🇪🇸 loved Café de Flore!",
    "Zoe\u0308 and Rene\u0301e met in Du\u0308sseldorf",
    "  two  spaces,\ta tab and \u00a0 John Smith of Acme Corp.  ",
    "mixed العربية and English in \u200fTel Aviv\u200e, 2024",
)


def default_texts(limit: int = 256) -> list[str]:
    """Distinct English sentences, spread evenly over the topics, at most ``limit``."""
    by_topic = [_sentences(corpus_folder() / "english" / f"{topic}.yml") for topic in TOPICS]
    share = -(-limit // len(by_topic))
    chosen = [text for sentences in by_topic for text in _spread(sentences, share)]
    return list(dict.fromkeys(chosen))[:limit]


def corpus_texts(limit: int) -> list[str]:
    """Distinct English sentences, spread evenly over the whole corpus, at most ``limit``."""
    files = sorted((corpus_folder() / "english").glob("*.yml"))
    texts = list(dict.fromkeys(text for path in files for text in _sentences(path)))
    one_line = [" ".join(text.split()) for text in texts]
    return _spread(list(dict.fromkeys(one_line)), limit)


def multilingual_texts() -> list[str]:
    """A few lines of our own in many scripts: steps break first where a byte is not a character,
    and a character not always one code point."""
    return list(_MULTILINGUAL)


def odd_texts(special: Sequence[str]) -> list[str]:
    """Texts that a tokenizer may misread: its own ``special`` tokens and those of others as words,
    accents, a single letter, punctuation alone, several scripts side by side."""
    tokens = list(special)
    return [
        *(f"it says {token} here" for token in tokens),
        *([" ".join(tokens), f"{tokens[-1]}inside{tokens[0]}"] if tokens else []),
        "[SEP] inside [CLS] text [MASK] </s> <s>",
        "<pad> [PAD] <unk> [UNK] <mask> <|endoftext|>",
        "a",
        ".",
        "Ünïcödé Ångström naïve façade",
        "e\u0301te\u0301 İstanbul ﬁne",
        "русский English 中文 العربية 日本語 עברית",
        "1,234.56 $ 50% a@b.example https://x.example/?q=1",
    ]


def corpus_folder() -> Path:
    """The corpus's data; SourceMissing says how to get it."""
    package = package_folder("chatterbot_corpus")
    if package is None:
        raise SourceMissing(
            "the default samples are in the package chatterbot-corpus, which is not installed: "
            "pip install 'tidegate[convert]'"
        )
    return package / "data"


def _sentences(path: Path) -> list[str]:
    from converters.sources.yaml_text import load_yaml

    document: Any = load_yaml(path.read_text(encoding="utf-8"))
    lines = (str(line).strip() for talk in document["conversations"] for line in talk)
    return list(dict.fromkeys(line for line in lines if line))


def _spread(texts: Sequence[str], count: int) -> list[str]:
    step = max(1, len(texts) // count)
    return list(texts[::step])[:count]

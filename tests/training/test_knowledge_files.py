"""What people write down becomes entries; what cannot be one is named by file and line."""

import pytest

from training.knowledge_files import MAX_QUESTION, PASSAGE, Entry, distinct, read_entries
from training.recipe import TrainingError


def _file(folder, name, text):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("name", "text", "entries"),
    [
        (
            "faq.csv",
            'question,answer,source\nWhere?,Here.,map\n"A, b?","Yes,\nno.",\n',
            [Entry("Here.", "map", "Where?"), Entry("Yes,\nno.", "faq.csv:4", "A, b?")],
        ),
        ("faq.tsv", "Text\tSource\nA fact.\tbook\n", [Entry("A fact.", "book")]),
        ("bom.csv", "\ufeffquestion,answer\nQ,A\n", [Entry("A", "bom.csv:2", "Q")]),
        (
            "faq.yml",
            '- {question: "Where?", answer: Here., source: map}\n- text: A fact.\n',
            [Entry("Here.", "map", "Where?"), Entry("A fact.", "faq.yml#2")],
        ),
        (
            "talk.yaml",
            'conversations:\n- ["Where?", Here., There.]\n- [Alone]\n',
            [Entry("Here.", "talk.yaml#1", "Where?")],
        ),
        (
            "book.md",
            "Intro.\n\n# Returns\nWithin 30 days.\nFree.\n\n## How long?\nThirty days.\n",
            [
                Entry("Intro.", "book.md"),
                Entry("Within 30 days. Free.", "book.md#Returns"),
                Entry("Thirty days.", "book.md#How long?", "How long?"),
            ],
        ),
        (
            "asked.md",
            "---\r\ntitle: x\r\n---\r\n# How long?\r\nThirty\r\ndays.\r\n\r\nOr more.\r\n# Fees\r\n"
            "\r\nNone.\r\n",
            [
                Entry("Thirty days.\n\nOr more.", "asked.md#How long?", "How long?"),
                Entry("None.", "asked.md#Fees"),
            ],
        ),
        (
            "code.md",
            "# Setup\n```\n# not a heading\n```\n",
            [Entry("``` # not a heading ```", "code.md#Setup")],
        ),
        (
            "odd.csv",
            "question,answer\n👩‍👩‍👧?,<b>包裹</b>\n",
            [Entry("<b>包裹</b>", "odd.csv:2", "👩‍👩‍👧?")],
        ),
    ],
)
def test_files(tmp_path, name, text, entries):
    assert read_entries(_file(tmp_path, name, text)) == entries


def test_a_long_paragraph_becomes_passages_of_whole_sentences(tmp_path):
    text = " ".join(f"This is sentence number {number} of many." for number in range(60))
    entries = read_entries(_file(tmp_path, "long.md", text))
    assert len(entries) > 2 and all(len(entry.text) <= PASSAGE for entry in entries)
    assert " ".join(entry.text for entry in entries) == text
    entries = read_entries(_file(tmp_path, "one.md", "x" * 2000))
    assert "".join(entry.text for entry in entries) == "x" * 2000


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("faq.pdf", "x", "pass a .csv"),
        ("faq.csv", b"question,answer\nQ,\xff\n", "is not UTF-8"),
        ("faq.csv", "", "has the columns none"),
        ("faq.csv", "question,reply\nQ,A\n", "has the columns question, reply"),
        ("faq.csv", "question,answer\n", "has no entries"),
        ("faq.csv", "question,answer\nQ,\n", r"line 2 has no answer and no text"),
        ("faq.csv", "question,answer\n ,A\n", r"line 2 has an answer and no question"),
        ("faq.csv", 'question,answer\nQ,"A\n', "is not CSV"),
        ("faq.csv", f"question,answer\n{'q' * (MAX_QUESTION + 1)},A\n", "over 700 characters"),
        ("faq.csv", f"question,answer\nQ,{'a' * 9000}\n", "over 8192 characters"),
        ("faq.csv", "question,answer\nQ,a\0b\n", r"the character U\+0000 in its answer"),
        ("faq.csv", "question,answer\nQ,\x1b[2J\n", r"U\+001B"),
        ("faq.csv", "question,answer\nQ,Yes, please.\n", "line 2 has more cells .* in quotes"),
        ("faq.csv", "question,answer,Answer\nQ,A,B\n", "column answer twice"),
        ("faq.yml", '- {question: "\\ud800", answer: A}\n', r"U\+D800 in its question"),
        ("faq.yml", "- {question: Norway, answer: No}\n", "not a text: write it in quotes"),
        ("faq.yml", "- {question: When, answer: 2020-01-01}\n", "not a text: write it in quotes"),
        ("faq.yml", f"- {{question: 0x{'f' * 4000}, answer: A}}\n", "question that is not a text"),
        ("faq.yml", "question: [", r"is not YAML \(line 1\)"),
        ("faq.yml", "question: Q", "must hold a list"),
        ("faq.yml", "- 3\n", "entry 1 is not an object"),
        ("faq.yml", "- {question: Q}\n", "entry 1 has no answer"),
        ("empty.md", "# Only a heading\n", "has no entries"),
        ("blank.md", " \n\t\n", "has no entries"),
    ],
)
def test_files_that_are_refused(tmp_path, name, text, problem):
    with pytest.raises(TrainingError, match=problem):
        read_entries(_file(tmp_path, name, text))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(TrainingError, match="cannot be read"):
        read_entries(tmp_path / "missing.csv")


def test_the_same_question_counts_once():
    first, second = Entry("A", "s", "Where is it?"), Entry("B", "s", "where IS it")
    other = Entry("C", "s", "👩‍👩‍👧")
    assert distinct([first, second, first, other]) == ([first, other], 1)

"""Names, numbers and addresses that are masked in a text."""

import numpy as np
import pytest

from ensembles.steps.label_entities import Entity, Redactor, personal_numbers, wants_redaction

CARD, IDENTITY = "4111111111111111", "11010519491231002X"  # the usual examples; both check


def _found(text: str) -> list[tuple[str, str]]:
    return [(text[start:end], label) for start, end, label in personal_numbers(text)]


def _redacted(text: str, *names: tuple[int, int, str], read: int | None = None) -> str:
    """As the step redacts it if each character is a token, and the first ``read`` were read."""
    entities = [Entity(text[start:end], start, end, label, 1.0) for start, end, label in names]
    count = len(text) if read is None else read
    span = np.array([(-1, -1), *((i, i + 1) for i in range(count)), (-1, -1)], dtype=np.int32)
    return Redactor()(text, entities, span)


@pytest.mark.parametrize(
    "number",
    [
        "13800138000",
        "138 0013 8000",
        "138-0013-8000",
        "+86 138 0013 8000",
        "010-62345678",
        "(021) 6234 5678",
        "0571-8765432",
        "400-820-8820",
        "+44 20 7946 0958",
        "+1 (415) 555-2671",
        "(415) 555-2671",
        "415-555-2671",
        "020 7946 0958",
        "07700900123",
        "0049 30 901820",
        "00 49 (30) 901820",
        "１３８００１３８０００",
        "138\u200b0013\u200b8000",
    ],
)
def test_telephone_numbers(number):
    for text in (f"请打{number}。", f"Call {number}, please"):
        assert _found(text) == [(number, "PHONE")]


@pytest.mark.parametrize("address", ["ann.lee+shop@example.co.uk", "a@b.cn", "ANN＠EXAMPLE．COM"])
def test_mail_addresses(address):
    assert _found(f"写信到{address}，谢谢") == [(address, "EMAIL")]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"card {CARD} 12/29", [(CARD, "CARD")]),
        ("4111 1111 1111 1111 12 29", [("4111 1111 1111 1111", "CARD")]),
        ("5500-0000-0000-0004", [("5500-0000-0000-0004", "CARD")]),
        ("378282246310005", [("378282246310005", "CARD")]),  # 15 digits
        (f"身份证{IDENTITY}。", [(IDENTITY, "ID")]),
        (f"身份证{IDENTITY.lower()}号", [(IDENTITY.lower(), "ID")]),
        ("110105 19491231 002X", [("110105 19491231 002X", "ID")]),
        ("4111111111111112", []),  # Luhn's checksum is wrong
        ("110105194912310021", []),  # the checksum is wrong
        ("11010519491331002X", []),  # no such month
        ("0000000000000000", []),
        ("order 2026-11-27, 3 x 250 g, 19.99", []),
        ("2024年1月5日10:30", []),
        ("12345678", []),
        ("order 20260315887, ref 0012345", []),
    ],
)
def test_card_and_identity_numbers_are_told_by_their_checksums(text, found):
    assert _found(text) == found


@pytest.mark.parametrize(
    ("text", "names", "redacted"),
    [
        ("the Warsaw store", [(8, 10, "LOC")], "the [LOC] store"),
        ("Siemens in Kiel", [(0, 3, "ORG"), (3, 7, "LOC"), (11, 15, "LOC")], "[ORG] in [LOC]"),
        ("Zoe\u0308 M\u00fcller", [(0, 3, "PER"), (5, 6, "PER")], "[PER] [PER]"),
        ("Киева.", [(0, 4, "LOC")], "[LOC]."),
        ("我叫王芳住上海", [(2, 4, "PER"), (5, 7, "LOC")], "我叫[PER]住[LOC]"),
        ("在London的", [(1, 7, "LOC")], "在[LOC]的"),
        ("Paris-based Emma's", [(1, 5, "LOC"), (12, 16, "PER")], "[LOC]-based [PER]'s"),
    ],
)
def test_a_word_is_masked_as_a_whole(text, names, redacted):
    assert _redacted(text, *names) == redacted


def test_every_wrong_last_digit_is_noticed():
    for last in "0123456789":
        assert (_found(CARD[:-1] + last) != []) == (last == CARD[-1])
    for last in "0123456789X":
        labels = [label for _, label in _found(IDENTITY[:-1] + last)]
        assert ("ID" in labels) == (last == IDENTITY[-1])


def test_names_are_replaced_by_their_labels_and_times_stay():
    text = "江泽民今天在北京👍打13800138000"
    names = ((0, 3, "PER"), (3, 5, "TIME"), (6, 8, "LOC"))
    assert _redacted(text, *names) == "[PER]今天在[LOC]👍打[PHONE]"
    assert _redacted(text) == "江泽民今天在北京👍打[PHONE]"


def test_of_what_overlaps_nothing_is_left():
    text = "ann@example.com"
    assert _redacted(text, (0, 3, "PER"), (4, 11, "ORG")) == "[EMAIL]"
    assert _redacted("Ann Lee Ray", (0, 7, "PER"), (4, 11, "ORG")) == "[PER]"
    assert _redacted("Ann Lee Ray", (4, 11, "ORG"), (0, 7, "PER")) == "[ORG]"
    assert _redacted("王芳李明", (0, 2, "PER"), (2, 4, "PER")) == "[PER][PER]"


def test_what_the_model_did_not_read_is_not_in_the_answer():
    text = "call 13800138000 or Ann"
    assert _redacted(text, read=8) == "call [PHONE]"
    assert _redacted(text, read=4) == "call"
    assert _redacted(text, read=0) == ""


def test_hostile_texts_are_redacted_in_no_time():
    for part in ("1", "+1", "1 ", "a@", "a.", "@a.", "(0", "0-", "\u200b", "江", "１"):
        text = part * (30_000 // len(part))
        assert isinstance(personal_numbers(text), list)


@pytest.mark.parametrize(
    ("parameters", "wants"),
    [
        ("", False),
        ("{}", False),
        ('{"redact": true}', True),
        ('{"redact": "true"}', True),
        ('{"redact": false}', False),
        ('{"truncate": true}', False),
    ],
)
def test_it_is_a_parameter_of_the_request(parameters, wants):
    assert wants_redaction(parameters) is wants

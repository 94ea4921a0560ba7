"""The step that asks several pipelines at once, imported as an ordinary module."""

import asyncio

import numpy as np
import pytest

from ensembles.steps import route_text, tokenize_text
from ensembles.steps.ask_pipelines import (
    TEXT_LIMIT_BYTES,
    Call,
    CallFailed,
    Calls,
    Refused,
    why_refused,
)

TOPIC = Call("topic", "topics", {"task": "topic"}, {"label": "topic", "language": "language"})
PLACES = Call(
    "places", "places", {}, {"entity": "place", "count": "places", "language": "language"}
)
EMPTY = {
    "topic": np.array([b""], dtype=object),
    "language": np.array([b""], dtype=object),
    "place": np.array([b""], dtype=object),
    "places": np.array([0], dtype=np.int32),
}
INVALID = "in ensemble 'topics', [tidegate:invalid_input row=0] the text is empty"


def _texts(*texts):
    return np.array([[text.encode()] for text in texts], dtype=object)


async def _answered(call, texts):
    """Topics only of English, and a place for each word; nothing of an empty text."""
    words = [text.decode().split() for text in texts[:, 0]]
    if not all(words):
        raise CallFailed(INVALID, 3)
    if call.name == "topic":
        if any("你好" in each for each in words):
            raise CallFailed("[tidegate:invalid_input] topic reads en", 3)
        return {
            "label": np.array([[each[0].encode()] for each in words], dtype=object),
            "language": np.array([[b"en"]] * len(texts), dtype=object),
        }
    width = max(map(len, words))
    places = [[word.encode() for word in each] + [b""] * (width - len(each)) for each in words]
    return {
        "entity": np.array(places, dtype=object),
        "count": np.array([[len(each)] for each in words], dtype=np.int32),
        "language": np.array([[b"any"]] * len(texts), dtype=object),
    }


def _asked(*texts):
    return asyncio.run(Calls([TOPIC, PLACES], EMPTY)(_texts(*texts), _answered))


def test_every_answer_is_there_with_its_time():
    outputs = _asked("Oslo Rome", "Bern")
    assert outputs["topic"].tolist() == [[b"Oslo"], [b"Bern"]]
    assert outputs["place"].tolist() == [[b"Oslo", b"Rome"], [b"Bern", b""]]
    assert outputs["places"].tolist() == [[2], [1]]
    assert outputs["language"].tolist() == [[b"en"], [b"en"]]  # of the first call
    assert outputs["step_name"].tolist() == [[b"topic", b"places"]] * 2
    assert outputs["step_error"].tolist() == [[b"", b""]] * 2
    assert (outputs["step_ms"] >= 0).all()


def test_a_call_that_fails_is_named_and_the_rest_is_there():
    outputs = _asked("Oslo", "你好 Rome")
    assert outputs["topic"].tolist() == [[b"Oslo"], [b""]]
    assert outputs["places"].tolist() == [[1], [2]]
    assert outputs["language"].tolist() == [[b"en"], [b"any"]]
    assert outputs["step_error"].tolist() == [[b"", b""], [b"topic reads en", b""]]


def test_a_message_to_which_nothing_answers_is_refused_by_its_row():
    with pytest.raises(
        Refused, match=r"\[tidegate:invalid_input row=1\] the text is empty"
    ) as refused:
        _asked("Oslo", " ")
    assert refused.value.code == 3


def test_a_failure_of_ours_is_not_marked_for_the_client():
    async def broken(call, texts):
        raise CallFailed("Stub process is not healthy", 2)

    with pytest.raises(Refused, match=r"^Stub process is not healthy$"):
        asyncio.run(Calls([TOPIC], EMPTY)(_texts("Oslo"), broken))


def test_all_are_asked_at_the_same_time():
    asked = []

    async def slow(call, texts):
        asked.append(call.name)
        for _ in range(3):
            await asyncio.sleep(0)
        assert len(asked) == 2
        return await _answered(call, texts)

    asyncio.run(Calls([TOPIC, PLACES], EMPTY)(_texts("Oslo"), slow))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "row=1] the text is empty"),
        ("\u3000\xa0\n".encode(), "row=1] the text is empty"),
        (b"\xff", "row=1] the text is not UTF-8"),
        (b"x" * (TEXT_LIMIT_BYTES + 1), "row=1] the text has 65537 bytes"),
        (b"x" * TEXT_LIMIT_BYTES, ""),
        ("\u200b".encode(), ""),
    ],
)
def test_what_no_pipeline_takes_is_refused_before_any_is_asked(text, problem):
    refusal = why_refused(np.array([[b"Oslo"], [text]], dtype=object))
    assert problem in refusal and bool(refusal) == bool(problem)


def test_the_limit_is_the_pipelines_own():
    assert TEXT_LIMIT_BYTES == tokenize_text.TEXT_LIMIT_BYTES == route_text.TEXT_LIMIT_BYTES


def test_an_output_of_a_failed_call_may_be_another_than_false():
    handed = Call("reply", "replies", {}, {"hand_over": "hand_over"}, {"hand_over": True})
    empty = {**EMPTY, "hand_over": np.array([False])}

    async def ask(call, texts):
        if call is handed:
            raise CallFailed("it is not served", 14)
        return await _answered(call, texts)

    outputs = asyncio.run(Calls([TOPIC, handed], empty)(_texts("London"), ask))
    assert outputs["hand_over"].tolist() == [[True]]
    assert outputs["topic"].tolist() == [[b"London"]]

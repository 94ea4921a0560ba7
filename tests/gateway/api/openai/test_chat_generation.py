"""The model's responses as text: why it ended, what it used; stops across every boundary."""

import orjson
import pytest

from gateway.api.openai.generation import Generation, GenerationRequest, StopFilter
from gateway.api.openai.responses import ChatWriter, CompletionWriter
from gateway.errors import UpstreamError
from gateway.models.text_binding import Binding
from tests.gateway.llm import MODEL, response

BINDING = Binding.compile({}, MODEL.inputs, MODEL.outputs)


class FakeAdmission:
    """A limiter's admission that records what was settled."""

    tokens = None

    def settle(self, tokens: float) -> None:
        self.tokens = tokens


def _generation(admission=None, **sampling) -> Generation:
    return Generation(
        BINDING, GenerationRequest("text_input", [""], sampling, True, True), admission
    )


def _generate(generation: Generation, *texts: bytes, **outputs) -> str:
    pieces = [generation.feed(response(text_output=text, **outputs)) for text in texts]
    return "".join([*pieces, generation.rest()])


def _splits(text: str) -> list[list[str]]:
    """Every way to split the text into pieces."""
    if len(text) < 2:
        return [[text]]
    shorter = _splits(text[1:])
    return [[text[0], *rest] for rest in shorter] + [
        [text[0] + rest[0], *rest[1:]] for rest in shorter
    ]


def test_a_stop_is_found_wherever_the_text_is_split():
    splits = _splits("abENDcdE")
    assert len(splits) == 128
    for pieces in splits:
        stops, never = StopFilter(["END", "ENOUGH"]), StopFilter(["ENDE"])
        assert "".join(map(stops.feed, pieces)) + stops.rest() == "ab"
        assert stops.stopped
        assert "".join(map(never.feed, pieces)) + never.rest() == "abENDcdE"
        assert not never.stopped


def test_only_what_may_be_a_stop_is_held_back():
    stops = StopFilter(["\n\nUser:", "###"])
    assert stops.feed("one #") == "one "
    assert stops.feed("# two\n") == "## two"
    assert stops.feed("\nUs") == ""
    assert stops.feed("ual") == "\n\nUsual"
    assert StopFilter([]).feed("all of it") == "all of it"


def test_a_character_split_in_two_is_one():
    euro = "€".encode()
    assert _generate(_generation(), b"5 " + euro[:1], euro[1:]) == "5 €"
    assert _generate(_generation(), b"5 " + euro[:1]) == "5 �"


def test_why_it_ended():
    explicit = _generation(max_tokens=9)
    _generate(explicit, b"a", finish_reason=b"None", num_output_tokens=1)
    _generate(explicit, b"b", finish_reason=b"length", num_output_tokens=1)
    assert explicit.finish_reason == "length"
    stopped = _generation(stop=["b"])
    assert _generate(stopped, b"ab", finish_reason=b"length") == "a"
    assert stopped.finish_reason == "stop"
    counted, silent = _generation(max_tokens=2), _generation(max_tokens=2)
    _generate(counted, b"ab", num_output_tokens=2)
    _generate(silent, b"a", b"b")
    assert counted.finish_reason == silent.finish_reason == "length"
    short = _generation(max_tokens=3)
    _generate(short, b"a", b"b")
    assert short.finish_reason == "stop"


def test_an_aborted_text_is_a_failure():
    with pytest.raises(UpstreamError):
        _generate(_generation(), b"a", finish_reason=b"abort")


def test_tokens_are_those_the_model_counted_or_none():
    admission = FakeAdmission()
    generation = _generation(admission)
    _generate(generation, b"a", b"b", num_input_tokens=5, num_output_tokens=2)
    assert generation.usage == {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}
    assert admission.tokens == 9
    uncharged = FakeAdmission()
    silent = _generation(uncharged)
    _generate(silent, b"a")
    assert silent.usage is None
    assert uncharged.tokens is None


def _events(data: bytes) -> list:
    return [orjson.loads(event.removeprefix(b"data: ")) for event in data.split(b"\n\n") if event]


def test_chat_chunks():
    writer = ChatWriter("id", "llm", include_usage=True)
    generation = _generation()
    _generate(generation, b"a", num_input_tokens=1, num_output_tokens=1, finish_reason=b"stop")
    events = _events(writer.opening() + writer.piece('"quoted"\n€') + writer.closing(generation))
    deltas = [event["choices"][0]["delta"] for event in events[:3]]
    assert deltas == [{"role": "assistant", "content": ""}, {"content": '"quoted"\n€'}, {}]
    assert [event["choices"][0]["finish_reason"] for event in events[:3]] == [None, None, "stop"]
    assert [event["usage"] for event in events[:3]] == [None] * 3
    assert events[3]["choices"] == []
    assert events[3]["usage"]["total_tokens"] == 2
    assert {event["id"] for event in events} == {"chatcmpl-id"}
    assert {event["object"] for event in events} == {"chat.completion.chunk"}


def test_completion_chunks_without_usage():
    writer = CompletionWriter("id", "llm", include_usage=False)
    events = _events(writer.opening() + writer.piece("a") + writer.closing(_generation()))
    assert [event["choices"][0]["text"] for event in events] == ["a", ""]
    assert all("usage" not in event for event in events)
    assert writer.whole("a", _generation())["usage"] is None

"""The model's answers -> text, why it ended, what it used; stop texts at every border."""

import orjson
import pytest

from gateway.api.openai.generation import Ask, Generation, StopFilter
from gateway.api.openai.responses import ChatForm, CompletionForm
from gateway.errors import UpstreamError
from gateway.models.text_binding import Binding
from tests.gateway.llm import MODEL, answer

BINDING = Binding.compile({}, MODEL.inputs, MODEL.outputs)


class Charged:
    """Stands for a limiter's admission; keeps what was settled."""

    tokens = None

    def settle(self, tokens: float) -> None:
        self.tokens = tokens


def _generation(admission=None, **sampling) -> Generation:
    return Generation(BINDING, Ask("text_input", [""], sampling, True, True), admission)


def _say(generation: Generation, *texts: bytes, **more) -> str:
    shown = [generation.feed(answer(text_output=text, **more)) for text in texts]
    return "".join([*shown, generation.rest()])


def _pieces(text: str) -> list[list[str]]:
    """The text in pieces, in every way."""
    if len(text) < 2:
        return [[text]]
    shorter = _pieces(text[1:])
    return [[text[0], *rest] for rest in shorter] + [
        [text[0] + rest[0], *rest[1:]] for rest in shorter
    ]


def test_a_stop_is_found_wherever_the_text_is_cut():
    ways = _pieces("abENDcdE")
    assert len(ways) == 128
    for pieces in ways:
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


def test_a_character_cut_in_two_is_one():
    euro = "€".encode()
    assert _say(_generation(), b"5 " + euro[:1], euro[1:]) == "5 €"
    assert _say(_generation(), b"5 " + euro[:1]) == "5 �"


def test_why_it_ended():
    told = _generation(max_tokens=9)
    _say(told, b"a", finish_reason=b"None", num_output_tokens=1)
    _say(told, b"b", finish_reason=b"length", num_output_tokens=1)
    assert told.finish_reason == "length"
    stopped = _generation(stop=["b"])
    assert _say(stopped, b"ab", finish_reason=b"length") == "a"
    assert stopped.finish_reason == "stop"
    counted, silent = _generation(max_tokens=2), _generation(max_tokens=2)
    _say(counted, b"ab", num_output_tokens=2)
    _say(silent, b"a", b"b")
    assert counted.finish_reason == silent.finish_reason == "length"
    short = _generation(max_tokens=3)
    _say(short, b"a", b"b")
    assert short.finish_reason == "stop"


def test_an_aborted_text_is_a_failure():
    with pytest.raises(UpstreamError):
        _say(_generation(), b"a", finish_reason=b"abort")


def test_tokens_are_those_the_model_counted_or_none():
    charged = Charged()
    generation = _generation(charged)
    _say(generation, b"a", b"b", num_input_tokens=5, num_output_tokens=2)
    assert generation.usage == {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}
    assert charged.tokens == 9
    silent, uncharged = _generation(Charged()), Charged()
    _say(silent, b"a")
    assert silent.usage is None
    assert uncharged.tokens is None


def _events(data: bytes) -> list:
    return [orjson.loads(each.removeprefix(b"data: ")) for each in data.split(b"\n\n") if each]


def test_chat_pieces():
    form = ChatForm("id", "llm", include_usage=True)
    generation = _generation()
    _say(generation, b"a", num_input_tokens=1, num_output_tokens=1, finish_reason=b"stop")
    said = _events(form.opening() + form.piece('"quoted"\n€') + form.closing(generation))
    deltas = [each["choices"][0]["delta"] for each in said[:3]]
    assert deltas == [{"role": "assistant", "content": ""}, {"content": '"quoted"\n€'}, {}]
    assert [each["choices"][0]["finish_reason"] for each in said[:3]] == [None, None, "stop"]
    assert [each["usage"] for each in said[:3]] == [None] * 3
    assert said[3]["choices"] == []
    assert said[3]["usage"]["total_tokens"] == 2
    assert {each["id"] for each in said} == {"chatcmpl-id"}
    assert {each["object"] for each in said} == {"chat.completion.chunk"}


def test_completion_pieces_without_usage():
    form = CompletionForm("id", "llm", include_usage=False)
    said = _events(form.opening() + form.piece("a") + form.closing(_generation()))
    assert [each["choices"][0]["text"] for each in said] == ["a", ""]
    assert all("usage" not in each for each in said)
    assert form.whole("a", _generation())["usage"] is None

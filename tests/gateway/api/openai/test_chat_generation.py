"""The model's responses as text: why it ended, what it used; stops across every boundary."""

from dataclasses import replace

import orjson
import pytest

from gateway.api.event_streams import DONE
from gateway.api.openai.generation import Generation, GenerationRequest, Prompt, TokenCounts
from gateway.api.openai.output_parsers import StopFilter
from gateway.api.openai.writers import ChatWriter, CompletionWriter
from gateway.errors import UpstreamError
from gateway.models.text_binding import Binding
from tests.gateway.llm import MODEL, response

BINDING = Binding.compile({}, MODEL.inputs, MODEL.outputs)


class FakeAdmission:
    """A limiter's admission that records what was settled."""

    tokens = None

    def settle(self, tokens: float) -> None:
        self.tokens = tokens


def _request(top=None, **sampling) -> GenerationRequest:
    return GenerationRequest(
        [Prompt("text_input", [""])], sampling, stream=True, include_usage=True, top_logprobs=top
    )


def _generation(counts=None, top=None, **sampling) -> Generation:
    return Generation(BINDING, _request(top, **sampling), counts)


def _generate(generation: Generation, *texts: bytes, **outputs) -> str:
    pieces = [generation.feed(response(text_output=text, **outputs)) for text in texts]
    return "".join(piece.delta.content for piece in [*pieces, generation.end()])


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


def test_the_stop_that_is_complete_first_counts():
    for pieces in _splits("xabcdy"):
        stops = StopFilter(["abcd", "c"])
        assert "".join(map(stops.feed, pieces)) + stops.rest() == "xab"


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
    counts = TokenCounts(admission=admission)
    _generate(_generation(counts), b"a", b"b", num_input_tokens=5, num_output_tokens=2)
    assert counts.usage == {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}
    assert admission.tokens == 9
    uncharged = FakeAdmission()
    silent = TokenCounts(admission=uncharged)
    _generate(_generation(silent), b"a")
    assert silent.usage is None
    assert uncharged.tokens is None


def test_a_prompt_counts_once_however_many_texts_continue_it():
    counts = TokenCounts(choices=4, n=2)
    request = replace(_request(), prompts=[Prompt("text_input", ["x"])] * 2, n=2)
    for choice, prompt_tokens in enumerate((3, 3, 5, 5)):
        generation = Generation(BINDING, request, counts, choice)
        numbers = {"num_input_tokens": prompt_tokens, "num_output_tokens": 1}
        _generate(generation, b"a", num_cached_tokens=2, **numbers)
    assert counts.usage == {
        "prompt_tokens": 8,
        "completion_tokens": 4,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 4},
    }


def _events(data: bytes) -> list:
    assert data.endswith(DONE)
    events = data.removesuffix(DONE).split(b"\n\n")
    return [orjson.loads(event.removeprefix(b"data: ")) for event in events if event]


def test_chat_chunks():
    counts = TokenCounts()
    writer = ChatWriter("id", "llm", _request())
    generation = _generation(counts)
    numbers = {"num_input_tokens": 1, "num_output_tokens": 1}
    pieces = [
        generation.feed(
            response(text_output='"quoted"\n€'.encode(), finish_reason=b"stop", **numbers)
        ),
        generation.end(),
    ]
    events = _events(b"".join([*map(writer.piece, pieces), writer.closing(counts)]))
    deltas = [event["choices"][0]["delta"] for event in events[:3]]
    assert deltas == [{"role": "assistant", "content": ""}, {"content": '"quoted"\n€'}, {}]
    assert [event["choices"][0]["finish_reason"] for event in events[:3]] == [None, None, "stop"]
    assert [event["usage"] for event in events[:3]] == [None] * 3
    assert events[3]["choices"] == []
    assert events[3]["usage"]["total_tokens"] == 2
    assert {event["id"] for event in events} == {"chatcmpl-id"}
    assert {event["object"] for event in events} == {"chat.completion.chunk"}


def test_completion_chunks_without_usage():
    request = GenerationRequest([Prompt("text_input", ["p"], echo="p")], {})
    writer = CompletionWriter("id", "llm", request)
    generation = Generation(BINDING, request)
    pieces = [generation.feed(response(text_output=b"a")), generation.end()]
    events = _events(b"".join([*map(writer.piece, pieces), writer.closing(TokenCounts())]))
    assert [event["choices"][0]["text"] for event in events] == ["pa", ""]
    assert all("usage" not in event for event in events)
    whole = CompletionWriter("id", "llm", request).whole(pieces, TokenCounts())
    assert whole["usage"] is None
    assert whole["choices"][0]["text"] == "pa"


def _entry(*candidates: tuple[str, float, int]) -> dict:
    """As the backend writes it: the sampled token first."""
    return {
        str(rank): {"logprob": logprob, "rank": rank, "decoded_token": token}
        for token, logprob, rank in candidates
    }


def _logprobs(generation: Generation, *responses: tuple[bytes, list | None]) -> list:
    pieces = [
        generation.feed(response(text_output=text, logprobs=orjson.dumps(entries)))
        for text, entries in responses
    ]
    return [token for piece in [*pieces, generation.end()] for token in piece.logprobs]


def test_the_sampled_token_is_the_first_one_and_never_rank_1_by_default():
    within = _entry((" b", -2.0, 2), (" a", -0.5, 1))
    [token] = _logprobs(_generation(top=2), (b" b", [within]))
    assert (token.token, token.logprob) == (" b", -2.0)
    assert [candidate.token for candidate in token.top] == [" a", " b"]
    beyond = _entry((" a", -0.5, 1), (" z", -9.0, 40))  # in whatever order
    [token] = _logprobs(_generation(top=1), (b" z", [beyond]))
    assert (token.token, [candidate.token for candidate in token.top]) == (" z", [" a"])


def test_the_bytes_of_all_tokens_are_the_text():
    euro = [_entry((cut, -1.0, 1)) for cut in "��€"]
    euro[2] = _entry(("�", -1.0, 1))
    tokens = _logprobs(
        _generation(top=0),
        (b"5", [_entry(("5", -0.1, 1))]),
        (b"", [euro[0]]),
        (b"", [euro[1]]),
        ("€!".encode(), [euro[2], _entry(("!", -0.1, 1))]),
        (b"", [_entry(("", 0.0, 1))]),
    )
    assert [token.data for token in tokens] == [b"5", b"\xe2", b"\x82", b"\xac", b"!", b""]
    two = _logprobs(_generation(top=0), (b"", [euro[0]]), ("€".encode(), [euro[1]]))
    assert [token.data for token in two] == [b"", "€".encode()]


def test_tokens_of_a_stop_have_no_logprobs():
    entries = [_entry((text, -1.0, 1)) for text in ("a", "E", "N", "D", "b")]
    tokens = _logprobs(
        _generation(top=0, stop=["END"]),
        *((text, [entry]) for text, entry in zip((b"a", b"E", b"N", b"D"), entries, strict=False)),
    )
    assert [token.token for token in tokens] == ["a"]


def test_the_token_that_ended_the_text_is_none_of_its_tokens():
    generation = _generation(top=0)
    tokens = []
    for text, token, reason in ((b"Hi", "Hi", b"None"), (b"", "<|im_end|>", b"stop")):
        entry = orjson.dumps([_entry((token, -1.0, 1))])
        piece = generation.feed(response(text_output=text, finish_reason=reason, logprobs=entry))
        tokens += piece.logprobs
    assert [token.token for token in [*tokens, *generation.end().logprobs]] == ["Hi"]


def test_logprobs_that_were_not_asked_for_are_null():
    assert _logprobs(_generation(), (b"a", None)) == []
    with pytest.raises(UpstreamError, match="cannot be read"):
        _generation(top=1).feed(response(text_output=b"a", logprobs=b"nonsense"))

"""However a model's text is cut into pieces, the answer is the same: text, stops, tool calls."""

import codecs
import itertools
import random
from collections.abc import Iterator

import orjson
import pytest

from gateway.api.openai.generation import Generation, GenerationRequest, Prompt
from gateway.api.openai.output_parsers import MAX_CALL, Delta, HermesCalls, joined
from gateway.api.openai.tools import Tools
from gateway.models.text_binding import Binding
from tests.gateway.llm import MODEL, response

BINDING = Binding.compile(
    {"tools": {"parser": "hermes"}, "reasoning": {"start": "<think>", "end": "</think>"}},
    MODEL.inputs,
    MODEL.outputs,
)
WEATHER = '{"name": "weather", "arguments": {"city": "Zürich 🌊", "days": 3}}'
CALL = f"<tool_call>\n{WEATHER}\n</tool_call>"
REASONING = (
    "",
    "<think>\nShall I? <tool_call> or </tool_call>\n</think>\n\n",
    " <think>ça</think>",
)
TEXTS = ("", "Grüße, 世界 👩‍👩‍👧!", "a < b <tool", "  \n", "one END two")
CALLS = (
    "",
    CALL,
    f"\n{CALL}\n\n{CALL}\n",
    "<tool_call>not JSON</tool_call>",
    "<tool_call>" + WEATHER,  # the end tag was the model's end token
    f"{CALL} and that is all </think> <",
    '<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Bern\\"}"}</tool_call>',
)
RECORDED = ["".join(parts) for parts in itertools.product(REASONING, TEXTS, CALLS)][:100]
TOOLS = Tools([], "auto")


def _answer(pieces: list[bytes], tools=TOOLS, binding=BINDING) -> tuple:
    request = GenerationRequest(
        [Prompt("text_input", [""])], {"stop": ["END", "ND t"]}, tools=tools
    )
    generation = Generation(binding, request)
    parts = []
    for piece in pieces:
        parts.append(generation.feed(response(text_output=piece)).delta)
        if generation.has_stopped:
            break
    last = generation.end()
    whole = joined(*parts, last.delta)
    calls = [(call.position, call.name, call.arguments) for call in whole.calls]
    return whole.content, whole.reasoning, calls, last.finish_reason


def test_there_are_a_hundred_recorded_outputs():
    assert len(set(RECORDED)) == 100


@pytest.mark.parametrize("output", RECORDED)
def test_every_cut_gives_the_same_answer(output):
    data = output.encode()
    whole = _answer([data])
    for at in range(1, len(data)):
        assert _answer([data[:at], data[at:]]) == whole
    assert _answer([data[at : at + 1] for at in range(len(data))]) == whole
    draw = random.Random(output)  # noqa: S311 - no secret
    for _ in range(10):
        cuts = sorted(draw.sample(range(len(data) + 1), min(len(data), 6)))
        pieces = [data[a:b] for a, b in itertools.pairwise([0, *cuts, len(data)])]
        assert _answer(pieces) == whole


SHORT_TAGS = Binding.compile(
    {"tools": {"parser": "hermes"}, "reasoning": {"start": "<r>", "end": "</r>"}},
    MODEL.inputs,
    MODEL.outputs,
)


def _cuts(data: bytes, most: int) -> Iterator[list[bytes]]:
    """Every way to cut it in up to so many places."""
    for count in range(most + 1):
        for places in itertools.combinations(range(1, len(data)), count):
            yield [data[a:b] for a, b in itertools.pairwise((0, *places, len(data)))]


@pytest.mark.parametrize(
    "output", ["<r>é</r>\n b", "a 世ND tE", "<r>END</r>", "😀</r>😀", "👩END<t"]
)
@pytest.mark.parametrize("tools", [None, TOOLS, Tools([], "named", "f"), Tools([], "required")])
def test_all_ways_of_cutting_a_short_output_give_the_same_answer(output, tools):
    data = output.encode()
    whole = _answer([data], tools, SHORT_TAGS)
    for pieces in _cuts(data, len(data)):
        assert _answer(pieces, tools, SHORT_TAGS) == whole, pieces


def test_all_ways_of_cutting_a_call_in_three_give_the_same_answer():
    data = '<think>ça</think>\n<tool_call>{"name": "f"}</tool_call> 😀'.encode()
    whole = _answer([data])
    assert whole == (" 😀", "ça", [(0, "f", "{}")], "tool_calls")
    for pieces in _cuts(data, 2):
        assert _answer(pieces) == whole, pieces


@pytest.mark.parametrize("text", ["Hi 😀 世界!", "a👩\u200d👧b", "one END two", "END"])
def test_log_probabilities_are_kept_however_tokens_share_responses(text):
    data = text.encode()
    tokens = [data[at : at + 2] for at in range(0, len(data), 2)]  # many end within a character
    request = GenerationRequest([Prompt("text_input", [""])], {"stop": ["END"]}, top_logprobs=0)
    expected = text.partition("END")[0]
    for count in range(len(tokens)):
        for places in itertools.combinations(range(1, len(tokens)), count):
            generation = Generation(BINDING, request)
            decoder = codecs.getincrementaldecoder("utf-8")()
            content, reported = "", []
            for a, b in itertools.pairwise((0, *places, len(tokens))):
                piece = generation.feed(_response_of(tokens[a:b], a, decoder))
                content += piece.delta.content
                reported += piece.logprobs
                if generation.has_stopped:
                    break
            last = generation.end()
            reported += last.logprobs
            assert content + last.delta.content == expected
            assert b"".join(token.data for token in reported).decode() == expected, places
            numbers = [token.logprob for token in reported]
            assert numbers == [-1.0 - at for at in range(len(numbers))]


def _response_of(tokens: list[bytes], first: int, decoder: codecs.IncrementalDecoder):
    """A response with these tokens; a token's log-probability says which it is."""
    texts = [token.decode("utf-8", "replace") for token in tokens]
    entries = [
        {"1": {"logprob": -1.0 - number, "rank": 1, "decoded_token": text}}
        for number, text in enumerate(texts, first)
    ]
    return response(
        text_output="".join(map(decoder.decode, tokens)).encode(), logprobs=orjson.dumps(entries)
    )


def test_what_the_answers_are():
    content, reasoning, calls, reason = _answer([f"<think>\nHm.</think>\n\nSo:\n{CALL}".encode()])
    assert (content, reasoning, reason) == ("So:\n", "Hm.", "tool_calls")
    [(_, name, arguments)] = calls
    assert name == "weather"
    assert orjson.loads(arguments) == {"city": "Zürich 🌊", "days": 3}
    assert _answer([b"one END two"]) == ("one ", "", [], "stop")
    assert _answer([b"<tool_call>not JSON</tool_call>"])[0] == "<tool_call>not JSON</tool_call>"
    assert [call[0] for call in _answer([f"{CALL}\n{CALL}".encode()])[2]] == [0, 1]
    assert _answer([CALL.encode()], tools=None)[0] == CALL


def test_forced_calls():
    named = Tools([], "named", "weather")
    assert _answer([b'{"city": ', b'"Bern"}'], named)[2] == [(0, "weather", '{"city": "Bern"}')]
    required = Tools([], "required")
    one = b'{"name": "b", "arguments": {"x": 1}}'
    assert _answer([one[:9], one[9:]], required)[2:] == ([(0, "b", '{"x":1}')], "tool_calls")
    two = _answer([b"[" + one + b", " + one + b"]"], required)
    assert [call[0] for call in two[2]] == [0, 1]
    assert _answer([one[:20]], required)[:3] == (one[:20].decode(), "", [])


def test_a_call_without_an_end_is_held_to_a_bound_and_is_content_then():
    for size in (MAX_CALL // 7, MAX_CALL):
        parser, parts = HermesCalls(), [Delta()]
        text = "<tool_call>" + "x" * (2 * MAX_CALL) + "</tool_call> done"
        parts += [parser.feed(text[at : at + size]) for at in range(0, len(text), size)]
        parts.append(parser.end())
        assert joined(*parts) == Delta(text)


# Files that an agent writes hold anything, such as the text of its own conversation.
QUOTED = '<tool_call>{"name": "f", "arguments": {"text": "a </tool_call> b"}}</tool_call>'


@pytest.mark.parametrize(
    ("output", "content", "calls"),
    [
        (QUOTED, "", [(0, "f", '{"text":"a </tool_call> b"}')]),
        (QUOTED.removesuffix("</tool_call>"), "", [(0, "f", '{"text":"a </tool_call> b"}')]),
        # The string has no end: the call that follows is one.
        (f'<tool_call>{{"a}}</tool_call>{CALL}', '<tool_call>{"a}</tool_call>', 1),
        ('<tool_call>{"a}</tool_call> b', '<tool_call>{"a}</tool_call> b', []),
        ('<tool_call>{"a' + "</tool_call>" * 20, '<tool_call>{"a' + "</tool_call>" * 20, []),
        ('<tool_call>{"name": "f", "arguments": "x"}</tool_call>', None, []),
        (
            f'<tool_call>{{"name": "f", "arguments": {{"é": {10**30}}}}}</tool_call>',
            "",
            [(0, "f", f'{{"é":{10**30}}}')],
        ),
        ('<tool_call>{"name": "f", "arguments": null}</tool_call>', "", [(0, "f", "{}")]),
    ],
)
def test_calls_that_other_servers_lose(output, content, calls):
    data = output.encode()
    whole = _answer([data])
    assert whole[0] == (output if content is None else content)
    assert len(whole[2]) == calls if isinstance(calls, int) else whole[2] == calls
    for pieces in _cuts(data, 1):
        assert _answer(pieces) == whole
    assert _answer([data[at : at + 1] for at in range(len(data))]) == whole


def test_a_call_that_is_to_be_the_only_one_ends_the_answer():
    data = f"<think>Hm.</think>So: {CALL}\n{CALL} and more".encode()
    expected = ("So: ", "Hm.", 1, "tool_calls")
    for pieces in _cuts(data, 1):
        content, reasoning, calls, reason = _answer(pieces, Tools([], "auto", parallel=False))
        assert (content, reasoning, len(calls), reason) == expected
    assert len(_answer([data], Tools([], "auto", parallel=True))[2]) == 2


@pytest.mark.parametrize(("depth", "is_call"), [(300, True), (1010, False), (60_000, False)])
def test_a_call_may_be_nested_deeply(depth, is_call):
    text = f'<tool_call>{{"name":"f","arguments":{{"a":{"[" * depth}{"]" * depth}}}}}</tool_call>'
    content, _, calls, _ = _answer([text.encode()])
    assert (content, len(calls)) == (("", 1) if is_call else (text, 0))


def test_end_tags_in_calls_that_are_none_take_linear_time():
    """Each is read again a bounded number of times."""
    parser, text = HermesCalls(), '<tool_call>{"</tool_call>' * 5000
    parts = [parser.feed(text[at : at + 100]) for at in range(0, len(text), 100)]
    assert joined(*parts, parser.end()) == Delta(text)

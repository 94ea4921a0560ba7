"""A recorded trace: what its lines mean, what is refused with its line, and the verdict on it."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from loadtests.preflight import CannotStart
from loadtests.signoff.confidence import Outcome
from loadtests.signoff.procedure import PROFILES, Result, sign_off_replay
from loadtests.signoff.slo import Limit, Slo
from loadtests.signoff.trace import Recorded, Trace, read_trace, text_of
from tests.loadtests.signoff.simulated import Server

LINES = """\
{"at_s": 0, "pipeline": "embed", "text": "Where is it?", "tenant": "shop"}

{"at_s": 1.5, "pipeline": "chat", "characters": 90, "max_tokens": 8}
{"at_s": 4, "pipeline": "embed"}
"""
AZURE = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
"""


def _read(folder, text, speed=1.0, chosen=()):
    path = folder / "trace"
    path.write_text(text)
    return read_trace(path, speed, chosen)


def test_json_lines(tmp_path):
    trace = _read(tmp_path, LINES, speed=2.0)
    assert trace.requests == (
        Recorded(1, 0.0, "embed", "Where is it?", tenant="shop"),
        Recorded(3, 1.5, "chat", characters=90, max_tokens=8),
        Recorded(4, 4.0, "embed"),
    )
    assert trace.pipelines == ["embed", "chat"]
    assert trace.due_s.tolist() == [0.0, 0.75, 2.0]
    assert (trace.duration_s, trace.rate("embed"), trace.rate("chat")) == (3.0, 2 / 3, 1 / 3)
    assert str(trace) == "a recorded trace, trace, at 2 times its speed"


def test_only_the_chosen_pipelines_of_it(tmp_path):
    assert _read(tmp_path, LINES, chosen=("chat",)).pipelines == ["chat"]
    for chosen in (("other",), ("chat", "other")):  # else it would be signed without that one
        with pytest.raises(CannotStart, match="has no request for other"):
            _read(tmp_path, LINES, chosen=chosen)


def test_azures_columns(tmp_path):
    first, second = _read(tmp_path, AZURE).requests
    assert first == Recorded(2, 0.0, "chat", characters=4 * 374, max_tokens=44)
    assert second.at_s == pytest.approx(4.314579)
    assert _read(tmp_path, AZURE, chosen=("llm",)).pipelines == ["llm"]
    zone = AZURE.replace("00,", "00+00:00,").replace("90,", "90+00:00,")
    assert len(_read(tmp_path, zone).requests) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no request"),
        ("{}", r"line 1: at_s = None is not a number of seconds"),
        (LINES + "nonsense", "line 5: it is not JSON"),
        (LINES + "[]", "line 5: it is not an object"),
        ("[" * 100_000, "line 1: it is not JSON"),
        (LINES + '{"at_s": 3, "pipeline": "a"}', "line 5: 3 s is before the request above it"),
        ('{"at_s": -1, "pipeline": "a"}', "line 1: at_s = -1 is not"),
        ('{"at_s": NaN, "pipeline": "a"}', "line 1: at_s = nan is not"),
        ('{"at_s": true, "pipeline": "a"}', "line 1: at_s = True is not"),
        ('{"at_s": 1}', "line 1: pipeline = None is not the name"),
        ('{"at_s": 1, "pipeline": "a", "txt": ""}', "line 1: 'txt' is not known"),
        ('{"at_s": 1, "pipeline": "a", "text": 3}', "line 1: text = 3 is not a string"),
        ('{"at_s": 1, "pipeline": "a", "text": "a", "characters": 1}', "write one of them"),
        ('{"at_s": 1, "pipeline": "a", "characters": -1}', "line 1: characters = -1 is not"),
        ('{"at_s": 1, "pipeline": "a", "max_tokens": 1.5}', "line 1: max_tokens = 1.5 is not"),
        ("TIMESTAMP,ContextTokens\n", "line 1: the column GeneratedTokens is missing"),
        (AZURE + "soon,1,1", "line 4: 'soon' is not a time"),
        (AZURE + "2023-11-16 18:15:51,1", "line 4: GeneratedTokens = None is not a number"),
        (AZURE + "2023-11-16 18:15:51,x,1", "line 4: ContextTokens = 'x' is not a number"),
        (AZURE + "2023-11-16 18:15:51+00:00,1,1", "is not a time like the others"),
        (AZURE + "2023-11-16 18:15:01,1,1", "line 4: -45.6806 s is before the request above it"),
    ],
)
def test_what_cannot_be_replayed_is_said_with_its_line(tmp_path, text, said):
    with pytest.raises(CannotStart, match=said):
        _read(tmp_path, text)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(CannotStart, match="No such file"):
        read_trace(tmp_path / "trace", 1.0)
    with pytest.raises(CannotStart, match="of one pipeline"):
        _read(tmp_path, AZURE, chosen=("a", "b"))


def test_texts_of_a_size_are_made_of_real_ones():
    texts = itertools.cycle(["one two", "three"])
    assert text_of(12, texts) == "one two thre"
    assert text_of(3, texts) == "one"


def _replayed(server, count=2000):
    """Two pipelines in turn on one server, of which each has its own limit."""
    names = np.array(["fast", "slow"] * (count // 2))
    trace = Trace("t", tuple(Recorded(at, at / 50, str(names[at])) for at in range(count)))
    slos = [
        Slo("fast", 25.0, (Limit("", 0.9, 0.1),), errors=0.01),
        Slo("slow", 25.0, (Limit("", 0.5, 0.001),)),
    ]
    results = [Result(slo, trace=str(trace)) for slo in slos]

    def replay():
        samples = server.load(50.0, trace.duration_s, "replay", due=trace.due_s)
        return replace(samples, labels={"pipeline": names})

    loads = [server.load, server.load]
    sign_off_replay(results, PROFILES["smoke"], loads, replay, server.memory, server.steps)
    return results


def test_each_pipeline_of_a_trace_has_its_own_verdict():
    fast, slow = _replayed(Server())
    assert fast.target.requests == slow.target.requests == 1000
    assert (fast.outcome, slow.outcome) == (Outcome.PASS, Outcome.FAIL)
    assert "p50 missed at 25/s" in slow.reason
    assert not fast.knee
    assert not fast.overload


def test_a_short_trace_is_undecided_and_the_advice_is_a_longer_one():
    fast, _ = _replayed(Server(), count=40)
    assert fast.outcome is Outcome.UNDECIDED
    assert fast.advice == "replay a longer trace, or accept wider limits"

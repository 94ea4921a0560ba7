"""The bench's streams: what a pass comes to, and the table of them."""

import pytest

from loadtests.bench.errors import BenchError
from loadtests.bench.passes import Ratio
from loadtests.bench.report import Section, markdown
from loadtests.bench.streams import (
    Stream,
    StreamPass,
    StreamRow,
    checked,
    messages,
    percentile,
    rendered,
    speed,
)

STREAMS = [Stream(10.0, (10.5, 10.75, 11.0), 3), Stream(10.0, (11.0, 11.25, 12.0), 5)]


def test_a_pass_has_the_times_of_every_stream():
    measured = StreamPass.of(STREAMS, 2.0, {"engine": 0.5, "gateway": 0.25})
    assert measured.tokens_per_s == 4
    assert measured.first_ms == [500, 1000]
    assert measured.gaps_ms == [250, 250, 250, 750]
    assert measured.cpu_us == {"engine": 62500, "gateway": 31250}


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.001, 1), (0.991, 100)]
)
def test_a_percentile_is_a_value_that_was_measured(share, expected):
    assert percentile(range(100, 0, -1), share) == expected


def test_a_row_is_of_all_passes_together_and_relative_to_one_stream():
    one, many = (StreamPass.of(STREAMS, busy_s, {"engine": 1.0}) for busy_s in (8.0, 2.0))
    row = StreamRow.of("served", "8", [many, many], speed([many, many], [one, one]))
    assert row.throughput == Ratio(4, 4, 4)
    text = markdown({}, [Section("Streams", [row])])
    assert (
        "| served | 8 | 4 | 4.00 | 4.00-4.00 | 500.0 | 1000.0 | 250.0 | 750.0 | 125,000 "
        "| engine 125,000 |"
    ) in text.splitlines()


def test_a_stream_that_is_cut_short_is_no_figure():
    with pytest.raises(BenchError, match="3 of 4 tokens"):
        checked(STREAMS[0], 4, "it")


def test_every_source_is_asked_the_same_text():
    turns = [f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>" for turn in messages("Hi")]
    assert rendered("Hi") == "\n".join([*turns, "<|im_start|>assistant\n"])

"""wrk's output is read exactly, and a pass with a failed request is refused."""

import json
import os

import pytest

from loadtests.bench.errors import BenchError
from loadtests.bench.wrk import Figures, LoadTarget, parse, record, run

LINE = {
    "requests": 3000,
    "duration_us": 2_000_000,
    "refused": 0,
    "broken": 0,
    "p50_us": 512,
    "p95_us": 1500,
    "p99_us": 2250,
}
TABLE = "Running 2s test @ http://127.0.0.1:1\n  1 threads and 8 connections\nTransfer/sec: 1MB\n"


def test_the_figures_are_in_the_last_line():
    figures = parse("direct", TABLE + json.dumps(LINE) + "\n", {"gateway": 0.75})
    expected = Figures(rps=1500.0, p50_ms=0.512, p95_ms=1.5, p99_ms=2.25, cpu_us={"gateway": 250.0})
    assert figures == expected


@pytest.mark.parametrize("counter", ["refused", "broken"])
def test_a_failed_request_stops_the_benchmark(counter):
    with pytest.raises(BenchError, match="direct: 2 of 3000 requests failed"):
        parse("direct", TABLE + json.dumps(LINE | {counter: 2}), {})


def test_a_pass_without_requests_is_refused():
    with pytest.raises(BenchError, match="0 of 0"):
        parse("direct", json.dumps(LINE | {"requests": 0}), {})


def test_a_pass_that_ends_before_the_first_answer_is_followed_by_a_longer_one(
    tmp_path, monkeypatch
):
    wrk = tmp_path / "wrk"
    none = json.dumps(LINE | {"requests": 0})
    wrk.write_text(
        f"#!/bin/sh\ncase $3 in -d2s) echo '{none}' ;; *) echo '{json.dumps(LINE)}' ;; esac\n"
    )
    wrk.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    target = LoadTarget("slow", "http://127.0.0.1:1", {}, [b"{}"], None)
    assert run(target, 32, 2).rps == 1500.0


@pytest.mark.parametrize("output", ["", "unable to connect\n"])
def test_output_without_figures_is_shown(output):
    with pytest.raises(BenchError, match="is not readable"):
        parse("direct", output, {})


def test_bodies_with_any_bytes_are_separated():
    assert record([b"ab", b"1\n2", b""]) == b"2\nab3\n1\n20\n"

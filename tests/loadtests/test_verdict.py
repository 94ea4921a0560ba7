"""The arithmetic of the verdict, on figures that can be checked by hand."""

import json
import subprocess
import sys

import pytest

from loadtests.verdict import Demand, Record, as_json, as_text, faults, percentile

BOTH = Demand(("grpc", "rest"))


@pytest.fixture
def record():
    """100 good answers over each protocol, of 1 to 100 ms."""
    filled = Record()
    for protocol, name in (("rest", "/v1/x"), ("grpc", "ModelInfer x")):
        for ms in range(1, 101):
            filled.add(protocol, name, float(ms), failed=False)
    filled.elapsed_s, filled.cpu_s = 10.0, 1.0
    return filled


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.95, 95), (0.99, 99), (1, 100)])
def test_a_percentile_is_a_time_that_was_measured(share, expected):
    assert percentile([float(ms) for ms in range(1, 101)], share) == expected


def test_a_percentile_of_few():
    assert percentile([], 0.99) is None
    assert percentile([7.0], 0.5) == percentile([7.0], 0.99) == 7
    assert percentile([1.0, 9.0], 0.99) == 9


def test_a_good_run_passes(record):
    assert faults(record, BOTH) == []
    assert as_text(record, BOTH) == "PASS: 200 requests in 10.0 s, no failures\n"
    document = json.loads(as_json(record, BOTH))
    assert document["passed"] is True
    assert document["client_cpu"] == 0.1
    assert document["routes"][1] == {
        "protocol": "rest",
        "name": "/v1/x",
        "requests": 100,
        "failures": 0,
        "rps": 10.0,
        "p50_ms": 50.0,
        "p95_ms": 95.0,
        "p99_ms": 99.0,
    }


def test_one_failure_fails_the_run_and_is_not_in_the_percentiles(record):
    record.add("rest", "/v1/x", 0.1, failed=True)
    row = record.figures()[1]
    assert (row.requests, row.failures, row.p50_ms) == (101, 1, 50)
    assert faults(record, BOTH) == ["/v1/x: 1 of 101 requests failed"]
    assert as_text(record, BOTH).startswith("FAIL: ")


def test_a_protocol_without_requests_fails_the_run(record):
    assert faults(Record(), BOTH) == [
        "no grpc user made a request",
        "no rest user made a request",
    ]
    assert faults(record, Demand(("rest", "stream"))) == ["no stream user made a request"]


def test_a_user_that_crashed_fails_the_run(record):
    record.crash(ValueError("oops"))
    record.crash(ValueError("oops"))
    assert faults(record, BOTH) == ["2 x a user crashed: ValueError: oops"]


def test_the_p99_limit_is_exact(record):
    assert faults(record, Demand(BOTH.protocols, 99.0)) == []
    assert "p99 at most 99 ms" in as_text(record, Demand(BOTH.protocols, 99.0))
    assert faults(record, Demand(BOTH.protocols, 98.9)) == [
        "ModelInfer x: p99 99.0 ms is over 98.9 ms",
        "/v1/x: p99 99.0 ms is over 98.9 ms",
    ]


def test_only_failures_have_no_percentile_and_no_p99_fault():
    record = Record()
    record.add("rest", "/v1/x", 1.0, failed=True)
    assert record.figures()[0].p99_ms is None
    assert faults(record, Demand(("rest",), 10.0)) == ["/v1/x: 1 of 1 requests failed"]


def test_a_busy_client_is_reported(record):
    record.cpu_s = 9.5
    assert "Locust itself used 95% of a core" in as_text(record, BOTH)


def test_a_restart_clears_the_record(record):
    record.crash(ValueError())
    record.restart()
    assert record.figures() == []
    assert not record.crashes
    assert record.client_cpu == 0


def test_only_the_files_that_locust_loads_import_it():
    """``import locust`` patches the standard library, so it must not be imported by accident."""
    code = (
        "import sys, loadtests.__main__, loadtests.responses, loadtests.verdict\n"
        "sys.exit(bool({'locust', 'gevent'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""The shadow's table in gateway.toml, and what its report says of the counts."""

import json
import tomllib

import pytest

from gateway.policy.gateway_toml import PolicyError, parse_rules
from serving.errors import ServingError
from tidegate.app.routes_file import read_shadow
from tidegate.app.shadows import LEAST_COMPARED, _write, report_of
from tidegate.app.top import Look

POLICY = {"rules": {"shadows": {"mood": {"to": "mood.v7", "percent": 10}}}}


def _look(times=(), **results: int) -> Look:
    labels = {"model": "mood", "shadow": "mood.v7"}
    other = {"model": "mood", "shadow": "mood.v6", "result": "differs"}
    counts = [({**labels, "result": result}, count) for result, count in results.items()]
    buckets = [({**labels, "arm": arm, "le": bound}, count) for arm, bound, count in times]
    samples = {
        "tidegate_shadow_requests_total": [*counts, (other, 5.0)],
        "tidegate_shadow_seconds_bucket": buckets,
    }
    return Look(0.0, [], [], samples)


@pytest.mark.parametrize(
    ("results", "verdict"),
    [
        ({}, "undecided"),
        ({"agrees": LEAST_COMPARED - 1, "dropped": 500}, "undecided"),
        ({"agrees": LEAST_COMPARED}, "agrees"),
        ({"agrees": 10_000, "differs": 1}, "differs"),
        ({"failed": 1}, "differs"),
    ],
)
def test_the_verdict(results, verdict):
    report = report_of("mood", POLICY, _look(**results))
    assert report.verdict == verdict
    document = report.as_dict()
    assert json.loads(json.dumps(document)) == document
    assert document["compared"] == results.get("agrees", 0) + results.get("differs", 0)
    assert any("undecided" in line for line in report.lines()) == (verdict == "undecided")


def test_the_times_of_both():
    times = [("primary", "0.005", 50), ("primary", "0.01", 100), ("primary", "+Inf", 100)]
    times += [("shadow", "0.01", 0), ("shadow", "0.02", 100), ("shadow", "+Inf", 100)]
    report = report_of("mood", POLICY, _look(times, agrees=100))
    assert report.primary_p50_ms == pytest.approx(5)
    assert report.shadow_p50_ms == pytest.approx(15)


def test_without_a_shadow_there_is_no_report():
    with pytest.raises(ServingError, match="has no shadow in this gateway: start one"):
        report_of("other", POLICY, _look())


def test_the_rest_of_the_file_stays_as_it_is(tmp_path):
    path = tmp_path / "gateway.toml"
    path.write_text('# ours\n[audit]\nrecord = "off"   # kept\n')
    _write(path, "mood", "mood.v7", 10)
    assert path.read_text().startswith('# ours\n[audit]\nrecord = "off"   # kept\n')
    assert read_shadow(path, "mood") == "mood.v7"
    assert tomllib.loads(path.read_text())["shadows"] == {"mood": {"to": "mood.v7", "percent": 10}}
    _write(path, "mood", "mood.v7", 50)
    assert tomllib.loads(path.read_text())["shadows"]["mood"]["percent"] == 50
    _write(path, "mood", "", 0)
    assert path.read_text() == '# ours\n[audit]\nrecord = "off"   # kept\n'
    assert read_shadow(path, "mood") == ""


def test_a_file_that_a_gateway_would_refuse_is_left_as_it_is(tmp_path):
    path = tmp_path / "gateway.toml"
    path.write_text("[no_such_table]\n")
    with pytest.raises(ServingError, match="no_such_table"):
        _write(path, "mood", "mood.v7", 10)
    assert path.read_text() == "[no_such_table]\n"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('to = "mood"\npercent = 10', "must be another pipeline"),
        ('to = "mood.v7"\npercent = 101', "less than or equal to 100"),
        ('to = "mood.v7"', "line 1"),
        ('to = "../x"\npercent = 1', "pattern"),
    ],
)
def test_what_the_gateway_refuses(table, message):
    with pytest.raises(PolicyError, match=message):
        parse_rules(f"[shadows.mood]\n{table}\n", "gateway.toml")

"""Two reports: what got worse is found, and nothing else is."""

import json

import pytest
from click.testing import CliRunner

from loadtests.signoff.compare import NotComparable, changes, read_report
from tests.loadtests.signoff.simulated import Server
from tests.loadtests.signoff.test_report import report_of
from tidegate.commands.signoff import command


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Paths: a server twice (with other arrivals), and one that is a fifth slower."""
    folder = tmp_path_factory.mktemp("reports")
    servers = {
        "before": Server(),
        "again": Server(_seed=50),
        "slower": Server(service_s=0.012, _seed=100),
    }
    for name, server in servers.items():
        (folder / f"{name}.json").write_text(json.dumps(report_of(server)))
    return folder


def test_the_same_server_again_is_no_regression(reports):
    found = changes(read_report(reports / "before.json"), read_report(reports / "again.json"))
    assert not any(change.is_regression for change in found), found
    assert [change.name for change in found] == [
        "verdict",
        "p50 at the target",
        "slowest of a second",
        *(f"requests that miss {name}" for name in ("p50", "p99", "errors")),
        "highest rate that holds",
    ]


def test_a_server_that_is_a_fifth_slower_is_a_regression_with_exit_code_1(reports):
    arguments = ["compare", str(reports / "before.json"), str(reports / "slower.json")]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 1, result.output
    worse = [line for line in result.output.splitlines() if line.endswith("REGRESSION")]
    assert any("p50 at the target" in line for line in worse)
    assert any("highest rate that holds" in line for line in worse)
    back = CliRunner().invoke(command, ["compare", *arguments[:0:-1], "--json"])
    assert back.exit_code == 0, back.output
    assert not any(change["is_regression"] for change in json.loads(back.output))


def test_a_server_that_fails_more_often_is_a_regression_however_fast_it_is():
    before, after = (
        {pipeline["name"]: pipeline for pipeline in report_of(server)["pipelines"]}
        for server in (Server(), Server(service_s=0.005, errors=0.5))
    )
    worse = [change.name for change in changes(before, after) if change.is_regression]
    assert {"verdict", "requests that miss errors", "requests that miss p99"} <= {*worse}


def test_what_cannot_be_compared_is_said(reports, tmp_path):
    before = read_report(reports / "before.json")
    with pytest.raises(NotComparable, match="no pipeline is in both: first, second"):
        changes(before, {"second": before["first"]})
    with pytest.raises(NotComparable, match=r"at 50/s and at 60/s"):
        changes(before, {"first": {**before["first"], "rate_per_s": 60}})
    (tmp_path / "report.json").write_text("[]")
    with pytest.raises(NotComparable, match="is no report"):
        read_report(tmp_path)
    result = CliRunner().invoke(command, ["compare", "nothing", "nothing"])
    assert result.exit_code == 2
    assert "cannot be read" in result.output

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
    assert [change.is_regression for change in found] == [False] * 3
    for change in found[:2]:
        low, high = change.interval
        assert low < 1.05
        assert high > 0.95


def test_a_server_that_is_a_fifth_slower_is_a_regression_with_exit_code_1(reports):
    arguments = ["compare", str(reports / "before.json"), str(reports / "slower.json")]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 1, result.output
    assert "p50 at the target: x 1." in result.output
    assert "REGRESSION" in result.output
    back = CliRunner().invoke(command, ["compare", *arguments[:0:-1], "--json"])
    assert back.exit_code == 0
    assert not any(change["regression"] for change in json.loads(back.output))


def test_what_cannot_be_compared_is_said(reports, tmp_path):
    before = read_report(reports / "before.json")
    with pytest.raises(NotComparable, match="no pipeline is in both: first, second"):
        changes(before, {"second": before["first"]})
    with pytest.raises(NotComparable, match=r"at 50/s and at 60/s"):
        changes(before, {"first": {**before["first"], "rate_per_s": 60}})
    with pytest.raises(NotComparable, match="less than 50 s"):
        changes(before, {"first": {**before["first"], "timeline": []}})
    (tmp_path / "report.json").write_text("[]")
    with pytest.raises(NotComparable, match="is no report"):
        read_report(tmp_path)
    result = CliRunner().invoke(command, ["compare", "nothing", "nothing"])
    assert result.exit_code == 2
    assert "cannot be read" in result.output

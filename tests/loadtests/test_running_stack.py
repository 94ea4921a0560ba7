"""The load test calls the stack that runs in this home, wherever it listens."""

import pytest

from loadtests.__main__ import _addresses
from loadtests.preflight import CannotStart
from loadtests.running_stack import NOTHING_RUNS, running_stack
from tidegate.app.claim import Claim, Running

ELSEWHERE = {"url": "http://127.0.0.1:18080", "grpc": "127.0.0.1:18081"}


@pytest.fixture
def claimed(tmp_path, monkeypatch):
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path))
    fields = {"pid": 1, "home": str(tmp_path), "repository": "", "admin": "", "workers": 1}
    fields |= {"triton": {"grpc": 18001}, "models": [], "logs": [], "phase": "step 1 of 2: loading"}
    claim = Claim(tmp_path / ".tidegate", Running(**fields, **ELSEWHERE))
    yield claim
    claim.close()


def _flags(url=None, grpc_address=None, gateway_grpc=None):
    addresses = _addresses(url=url, grpc_address=grpc_address, gateway_grpc=gateway_grpc)
    return tuple(addresses[name] for name in ("url", "grpc_address", "gateway_grpc"))


def test_what_runs_here_is_called(claimed):
    claimed.running.is_ready = True
    claimed.write()
    assert _flags() == ("http://127.0.0.1:18080", "127.0.0.1:18001", "127.0.0.1:18081")
    assert _flags(url="http://127.0.0.1:18080/")[2] == "127.0.0.1:18081"
    # A gateway elsewhere has another gRPC port.
    assert _flags(url="http://10.0.0.1:8080") == ("http://10.0.0.1:8080", "127.0.0.1:18001", "")
    assert _flags("http://a:1", "b:2", "c:3") == ("http://a:1", "b:2", "c:3")


def test_one_that_is_starting_is_named(claimed):
    with pytest.raises(CannotStart, match=r"still starting \(step 1 of 2: loading\)"):
        _flags()


def test_without_one_the_usual_ports_are_called(tmp_path, claimed):
    assert running_stack({"TIDEGATE_HOME": str(tmp_path / "nothing")}) == NOTHING_RUNS
    killed = tmp_path / "killed"
    (killed / ".tidegate").mkdir(parents=True)
    text = (tmp_path / ".tidegate" / "up.json").read_text()
    (killed / ".tidegate" / "up.json").write_text(text)  # nobody holds it
    assert running_stack({"TIDEGATE_HOME": str(killed)}) == NOTHING_RUNS

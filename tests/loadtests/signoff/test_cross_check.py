"""The comparison with perf_analyzer and AIPerf: what it says of two clients' figures."""

import json
import math
import subprocess
import sys

import psutil
import pytest

from loadtests.preflight import CannotStart
from loadtests.signoff.cross_check import (
    AIPERF,
    PERF_ANALYZER,
    Client,
    CrossCheck,
    NotCompared,
    ServersTime,
    aiperf,
    chat_figures_of,
    figures_of,
    perf_analyzer,
)
from loadtests.signoff.open_loop import run_closed
from loadtests.signoff.sending import Prepared, Response

CSV = """\
Concurrency,Inferences/Second,Client Send,p50 latency,p90 latency
4,123.5,17,8100,9000
"""


def _ours(*rates, cpu=0.1):
    return tuple(Client(rate, 8.0, cpu) for rate in rates)


@pytest.mark.parametrize(
    ("theirs", "ours", "said"),
    [
        (Client(100, 8, 0.1), _ours(95, 105), "ratio 1.00, within 15%."),
        (Client(100, 8, 0.1), _ours(80, 80), "own two runs|so the cause is unknown"),
        (Client(100, 8, 0.1), _ours(60, 90), "own two runs differ by 50%, so the machine varies"),
        (Client(100, 8, 0.1), _ours(70, 71, cpu=0.9), "itself used 90% of a core"),
        (Client(100, 8, 0.8), _ours(130, 131), "perf_analyzer itself used 80% of a core"),
    ],
)
def test_it_says_the_ratio_and_why_they_differ(theirs, ours, said):
    check = CrossCheck(PERF_ANALYZER, theirs, ours)
    assert any(part in str(check) for part in said.split("|")), str(check)
    assert "perf_analyzer 100/s (p50 8 ms)" in str(check)


def test_what_could_not_be_compared_says_why():
    assert str(CrossCheck(PERF_ANALYZER, why="it ended with 1")) == (
        "Not checked against perf_analyzer: it ended with 1."
    )
    assert CrossCheck(PERF_ANALYZER, why="x").ratio is None


def test_its_figures_are_read_and_what_is_none_is_refused():
    assert figures_of(CSV) == (123.5, 8.1)
    for text in ("", "Concurrency\n4\n", CSV.replace("8100", "fast")):
        with pytest.raises(NotCompared, match="cannot be read"):
            figures_of(text)


def test_chat_is_compared_with_aiperf_by_its_first_tokens_too():
    document = {
        "request_throughput": {"unit": "requests/sec", "avg": 2.5},
        "request_latency": {"unit": "ms", "avg": 900.0, "p50": 800.0},
        "time_to_first_token": {"unit": "ms", "avg": 95.0, "p50": 90.0},
        "request_count": {"unit": "requests", "avg": 50},
    }
    theirs = chat_figures_of(json.dumps(document), 10.0)
    assert theirs.server_ms == 200
    said = str(CrossCheck(AIPERF, theirs, (Client(2.6, 790, 0.1, 88), Client(2.4, 810, 0.1, 92))))
    assert "AIPerf 2.5/s (p50 800 ms, first token 90 ms)" in said
    assert "p50 790 and 810 ms, first token 88 and 92 ms): ratio 1.00, within 15%." in said
    with pytest.raises(NotCompared, match="cannot be read"):
        chat_figures_of("{}")


def test_a_client_that_takes_cores_from_the_servers_is_compared_by_what_they_spent():
    ours = (Client(4.1, 900, 0.1, 90, 290), Client(4.1, 900, 0.1, 90, 310))
    said = str(CrossCheck(AIPERF, Client(3, 1200, 0.6, 100, 306), ours))
    assert "ratio 1.37, more than 15% apart: AIPerf itself used 60% of a core" in said
    assert "spent 306 ms of processor time on a request of its, 290 and 310 ms on one" in said
    assert said.endswith("ratio 1.02, within 15%.")
    other = str(CrossCheck(AIPERF, Client(3, 1200, 0.6, 100, 600), ours))
    assert other.endswith("ratio 2.00, more than 15%.")


BUSY = """
import time
while True:
    until = time.process_time() + 0.1
    while time.process_time() < until:
        pass
    print(flush=True)
"""


@pytest.fixture
def servers():
    """A process with a child that uses a core, and prints a line for each tenth of a second."""
    command = ["sh", "-c", f"{sys.executable} -c '{BUSY}' & wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as running:
        running.stdout.readline()
        yield running
        for child in psutil.Process(running.pid).children():
            child.kill()


def test_the_servers_time_is_that_of_all_their_processes_less_what_they_use_idle(servers):
    used_s = []
    for idle_s in (0.0, 0.5):
        servers_time = ServersTime(psutil.Process(servers.pid), idle_s)
        servers_time.start()
        for _ in range(10):
            servers.stdout.readline()
        used_s.append(servers_time.used_s())
    assert used_s[0] > 0.9
    assert used_s[1] < 0.7 * used_s[0]


def test_without_servers_here_their_time_is_not_known():
    nobody = ServersTime(None)
    nobody.start()
    assert math.isnan(nobody.used_s())


@pytest.mark.parametrize("peer", [PERF_ANALYZER, AIPERF])
def test_without_the_peer_it_says_how_to_get_it(tmp_path, monkeypatch, peer):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotStart, match=f"run `{peer.target}`"):
        peer.find(tmp_path)


def test_a_client_that_ends_badly_is_quoted(tmp_path):
    tool = tmp_path / "peer"
    tool.write_text(f"#!{sys.executable}\nraise SystemExit('no such model')\n")
    tool.chmod(0o755)
    with pytest.raises(NotCompared, match="perf_analyzer ended with 1: no such model"):
        perf_analyzer(tool, "http://127.0.0.1:9", "", "x", "{}", 0.1)
    with pytest.raises(NotCompared, match="AIPerf ended with 1: no such model"):
        aiperf(tool, "http://127.0.0.1:9", "", "x", ["hi"], 0.1, ServersTime(None))


def test_a_closed_loop_keeps_so_many_under_way():
    under_way, most, count = 0, 0, 0

    class Slow:
        def prepare(self):
            def send():
                nonlocal under_way, most, count
                import gevent

                under_way += 1
                most = max(most, under_way)
                gevent.sleep(0.01)
                under_way -= 1
                count += 1
                return Response("" if count % 2 else "HTTP 500", {"first_token": 0.005})

            return Prepared(send)

    samples = run_closed(Slow(), 3, 0.2)
    assert most == 3
    assert samples.requests == count
    assert samples.failed.sum() == count // 2
    assert samples.latency_s.min() >= 0.009
    assert samples.percentile_s(0.5, "first_token") == 0.005
    assert samples.percentile_s(0.5, "gap") is None

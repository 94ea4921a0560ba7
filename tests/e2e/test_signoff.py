"""``tidegate signoff`` as a user runs it, against servers whose faults are planted.

The limits are wide: other tests run beside this one, and a load generator that is late signs
nothing, as it should.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from serving.triton.ports import free_ports
from tests.running import ROOT, wait_until

WIDE = """
[planted]
rate = "40/s"
p90 = "3s"
errors = 0.05
"""


@contextmanager
def planted(*arguments: str) -> Iterator[str]:
    with planted_process(*arguments) as (url, _):
        yield url


@contextmanager
def planted_process(*arguments: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "tests.loadtests.signoff.planted", str(port), *arguments]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        wait_until(lambda: _listens(port), 30, "the planted server")
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def command(tmp_path, text: str, *arguments: str) -> list[str]:
    (tmp_path / "slo.toml").write_text(text)
    return [
        *(sys.executable, "-m", "tidegate", "signoff", f"--slo={tmp_path / 'slo.toml'}"),
        *(f"--out={tmp_path / 'out'}", "--profile=smoke", *arguments),
    ]


def run(tmp_path, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(tmp_path, text, *arguments),
        cwd=ROOT,
        env={**os.environ, "TIDEGATE_API_KEY": "none"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_a_server_that_holds_is_signed_with_a_report(tmp_path):
    with planted("--slots", "8") as url:
        result = run(tmp_path, WIDE, "--target", url, "--only-target", "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["verdict"] == "pass"
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())
    assert "target: 40/s for" in result.stderr
    (pipeline,) = report["pipelines"]
    assert pipeline["at_the_target"]["requests"] == pipeline["objectives"][0]["requests"] > 0
    # The server says 0.2 ms and 1 ms of each request in its Server-Timing.
    times = pipeline["where_the_time_goes_ms"]
    assert times["gateway"] == pytest.approx(0.2)
    assert times["Triton: queue and compute"] == pytest.approx(1.0)
    assert pipeline["memory"]["mib"], "the server's process was not found"
    (tmp_path / "out" / "report.html").read_text().index("planted: ")


def test_streams_are_measured_by_their_tokens(tmp_path):
    """Four tokens, one each 100 ms, and a role before them."""
    text = WIDE.replace("3s", "30s") + "api = 'chat'\nfirst_token_p90 = '3s'\ngap_p90 = '3s'\n"
    with planted("--service-ms", "100") as url:
        result = run(tmp_path, text, "--target", url, "--only-target", "--json")
    assert result.returncode == 0, result.stderr
    (pipeline,) = json.loads(result.stdout)["pipelines"]
    at_target = pipeline["at_the_target"]
    assert at_target["failed"] == 0
    assert 100 <= at_target["first_token_p50_ms"] < 3000
    assert 99 <= at_target["gap_p50_ms"] < 1000
    assert at_target["p50_ms"] >= 500
    lines = {line["name"]: line for line in pipeline["objectives"]}
    assert lines["first_token_p90"]["requests"] == lines["p90"]["requests"] > 0


def test_planted_errors_are_not_signed(tmp_path):
    text = WIDE.replace("3s", "30s")  # wide: only the errors miss it
    with planted("--slots", "8", "--errors", "0.3") as url:
        result = run(tmp_path, text, "--target", url, "--only-target")
    assert result.returncode == 1, result.stderr
    assert "## planted: NOT SIGNED" in result.stdout
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(report["pipelines"][0]["at_the_target"]["errors"]) == ["HTTP 500"]


def test_requests_are_spread_over_tenants_and_refusals_are_theirs(tmp_path):
    (tmp_path / "keys").write_text("one 3 large\ntwo 1 small\n")
    text = WIDE.replace("3s", "30s")
    with planted("--slots", "8", "--limit", "two") as url:
        arguments = ("--target", url, "--only-target", "--json", f"--keys={tmp_path / 'keys'}")
        result = run(tmp_path, text, *arguments)
    assert result.returncode == 1, result.stderr  # an eighth of all is refused, a twentieth may be
    (pipeline,) = json.loads(result.stdout)["pipelines"]
    large, small = pipeline["at_the_target"]["tenants"]
    assert (large["name"], small["name"]) == ("large", "small")
    assert large["failed"] == 0
    assert small["refused"] == small["failed"] == small["errors"]["HTTP 429"] > 0
    assert 2 < large["requests"] / small["requests"] < 4.5
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"<td>small</td><td>{small['requests']}</td><td>{small['refused']}</td>" in page
    assert (
        f"| small | {small['requests']} | {small['refused']} | 0 |"
        in (tmp_path / "out" / "report.md").read_text()
    )


def test_a_tenant_without_rights_is_named_before_any_load(tmp_path):
    (tmp_path / "keys").write_text("one\ntwo 1 shop\n")
    with planted("--forbid", "two") as url:
        result = run(tmp_path, WIDE, "--target", url, f"--keys={tmp_path / 'keys'}")
    assert result.returncode == 3
    assert "refuses the key of tenant 'shop' (HTTP 403)" in result.stderr
    assert "warm-up" not in result.stderr


@pytest.mark.parametrize("generators", [1, 2])
def test_one_generator_and_two_come_to_the_same_verdict(tmp_path, generators):
    (tmp_path / "keys").write_text("one 1 a\ntwo 1 b\n")
    text = WIDE.replace("3s", "30s")
    with planted("--slots", "8", "--errors", "0.3") as url:
        arguments = ("--target", url, "--only-target", "--json", f"--keys={tmp_path / 'keys'}")
        result = run(tmp_path, text, *arguments, f"--generators={generators}")
    assert result.returncode == 1, result.stderr
    (pipeline,) = json.loads(result.stdout)["pipelines"]
    assert pipeline["reason"] == "p90, errors missed at 40/s"
    assert sum(own["requests"] for own in pipeline["at_the_target"]["tenants"]) > 100
    assert list(pipeline["at_the_target"]["errors"]) == ["HTTP 500"]


def test_a_trace_is_replayed_for_its_tenants(tmp_path):
    rows = [
        {"at_s": at / 20, "pipeline": "planted", "characters": 200, "tenant": ("a", "b")[at % 2]}
        for at in range(240)
    ]
    (tmp_path / "trace").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "keys").write_text("one 1 a\ntwo 1 b\n")
    with planted("--slots", "8") as url:
        arguments = (
            *("--target", url, "--json", f"--keys={tmp_path / 'keys'}", "--speed=2"),
            *(f"--trace={tmp_path / 'trace'}", "--generators=2"),
        )
        result = run(tmp_path, WIDE, *arguments)
    assert result.returncode == 0, result.stderr
    (pipeline,) = json.loads(result.stdout)["pipelines"]
    assert pipeline["arrivals"] == "a recorded trace, trace, at 2 times its speed"
    assert pipeline["rate_per_s"] == pytest.approx(40.0)
    assert [own["requests"] for own in pipeline["at_the_target"]["tenants"]] == [120, 120]


def test_the_replica_that_was_named_is_killed_and_awaited(tmp_path):
    """The one that is killed carries nothing, so that nothing fails; another takes its place."""
    with planted("--slots", "8") as url, planted_process() as (spare, process):
        done = threading.Event()
        successor = threading.Thread(target=_replace, args=(process, spare, done))
        successor.start()
        arguments = ("--target", url, "--only-target", "--json", f"--allow-kill={process.pid}")
        result = run(tmp_path, WIDE, *arguments)
        done.set()
        successor.join()
    assert result.returncode == 0, result.stderr
    (pipeline,) = json.loads(result.stdout)["pipelines"]
    killed = pipeline["replica_killed"]
    assert (killed["failed"], killed["good_again_s"]) == (0, 0)
    assert killed["ready_again_s"] > 0
    assert killed["repeatable"] == killed["requests"] > 0
    assert pipeline["objectives"][-1]["name"] == "replica killed"
    assert (
        "A replica was killed at the target's rate: 0 of"
        in (tmp_path / "out" / "report.md").read_text()
    )


def _replace(process: subprocess.Popen[bytes], url: str, done: threading.Event) -> None:
    process.wait()
    port = url.rpartition(":")[2]
    command = [sys.executable, "-m", "tests.loadtests.signoff.planted", port]
    with subprocess.Popen(command, cwd=ROOT) as successor:
        done.wait()
        successor.kill()


def test_ctrl_c_leaves_a_partial_report_that_is_unsigned(tmp_path):
    with planted("--slots", "8") as url:
        process = subprocess.Popen(
            command(tmp_path, WIDE, "--target", url),
            cwd=ROOT,
            env={**os.environ, "TIDEGATE_API_KEY": "none"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A shell's background job ignores Ctrl-C, and its children with it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert process.stderr
        assert "warm-up" in process.stderr.readline()
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 2, errors
    assert "## planted: UNDECIDED" in output
    assert "stopped: the report is partial, and unsigned" in errors
    assert (tmp_path / "out" / "report.html").exists()


def test_a_trace_that_cannot_be_replayed_is_refused_with_its_line(tmp_path):
    (tmp_path / "trace").write_text('{"at_s": 0, "pipeline": "planted", "tenant": "x"}')
    with planted() as url:
        result = run(tmp_path, WIDE, "--target", url, f"--trace={tmp_path / 'trace'}")
    assert result.returncode == 3
    assert "trace, line 1: tenant 'x' has no key" in result.stderr
    assert "warm-up" not in result.stderr


@pytest.fixture(scope="module")
def refuse() -> Iterator[Callable[[list[str]], tuple[int, str]]]:
    """``refuse(command)``: the exit code and the errors of a command that is to load one planted
    server, or as its own arguments say."""
    with (
        planted() as url,
        subprocess.Popen(
            [sys.executable, "-m", "tests.loadtests.signoff.forked"],
            cwd=ROOT,
            env={**os.environ, "TIDEGATE_API_KEY": "none"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        assert process.stdin and process.stdout

        def run_forked(command: list[str]) -> tuple[int, str]:
            # Without ``python -m tidegate signoff``; the last of two equal options counts.
            arguments = ["--target", url, *command[4:]]
            process.stdin.write(json.dumps(arguments) + "\n")
            process.stdin.flush()
            code, errors = json.loads(process.stdout.readline())
            return code, errors

        yield run_forked
        process.stdin.close()


@pytest.mark.parametrize(
    ("text", "arguments", "said"),
    [
        ("[planted]\nrate = '5'\np99 = '1s'", (), "is not a rate above 0: write 50/s"),
        ("[planted]\nrate = '5/s'\np99 = 100", (), 'has no unit: write "100ms"'),
        ("[other]\nrate = '5/s'\np99 = '1s'", (), "does not serve other"),
        (WIDE, ("--pipeline", "nothing"), "has no [nothing]: it has planted"),
        (WIDE.replace("p90", "api = 'openai'\np90"), (), "not served at /v1/embeddings"),
        (WIDE.replace("40/s", "9000/s"), (), "is more than a load generator sends"),
        (WIDE + "errors = 0\n", (), "is not TOML"),
        (WIDE.replace("0.05", "0"), (), "errors = 0 is not a number from 0.0001 to 0.5"),
        (WIDE + "api = 'task'\ngap_p90 = '1s'\n", (), "add chat or grpc-stream to its api"),
        (WIDE, ("--target", "http://127.0.0.1:9/path"), "without a path"),
        (WIDE, ("--target", "http://[::1"), "is not a gateway's URL"),
        (WIDE.replace("p90", "api = 'grpc'\np90"), (), "pass --grpc HOST:PORT"),
        (WIDE, ("--out", "/proc/nothing"), "cannot be written"),
        (WIDE, ("--target", "http://127.0.0.1:9"), "no gateway answers"),
        (WIDE, ("--allow-kill", "4194303"), "there is no process 4194303"),
        (WIDE, ("--target", "ftp://x"), "is not a gateway's URL"),
    ],
)
def test_what_cannot_be_is_refused_before_any_load(tmp_path, refuse, text, arguments, said):
    code, errors = refuse(command(tmp_path, text, *arguments))
    assert code == 3, errors
    assert said in errors
    assert "warm-up" not in errors
    assert "Traceback" not in errors

"""``tidegate top``: what it computes from two looks, and what it prints of a real gateway."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import inf
from typing import ClassVar

import httpx
import pytest
from rich.console import Console

from gateway.policy.principal import ADMIN
from serving.errors import ServingError
from serving.triton.ports import free_ports
from tests.gateway.every_api import V2_BODY, every_api
from tests.gateway.fake_llm import wait_for
from tests.running import ROOT
from tidegate.app.claim import NothingRuns
from tidegate.app.errors import UsageError
from tidegate.app.key_store import KeyStore
from tidegate.app.paths import Paths
from tidegate.app.stack import ask
from tidegate.app.top import Gateway, Look, compare, quantile
from tidegate.commands.top import rendered

ANSI = re.compile("\x1b")


@pytest.mark.parametrize(
    ("buckets", "share", "expected"),
    [
        ({}, 0.5, None),
        ({0.1: 0, inf: 0}, 0.5, None),
        ({0.1: 10, inf: 10}, 0.5, 0.05),  # linear in a bucket
        ({0.1: 0, 0.2: 10, inf: 10}, 0.5, 0.15),
        ({0.1: 5, 0.2: 10, inf: 10}, 0.5, 0.1),
        ({0.1: 50, 0.2: 90, 0.4: 100, inf: 100}, 0.95, 0.3),
        ({0.1: 0, 0.2: 1, inf: 100}, 0.95, 0.2),  # above the last bound: at least that
    ],
)
def test_a_quantile_of_buckets(buckets, share, expected):
    assert quantile(buckets, share) == (expected if expected is None else pytest.approx(expected))


def _look(at, count, failed=0, tokens=0, probe=""):
    labels = {"model": "m", "api": "v2", "status": "2xx"}
    return Look(
        at,
        [
            {
                "address": "a:1",
                "health": "up",
                "inflight": 1,
                "tokens": 40,
                "ejected": {"m": 3.0},
                "probes": {"wrong": "answers its golden sample wrongly in y"},
                "drained": True,
                "leaving": False,
                "reason": "",
            }
        ],
        [
            {"name": "m", "public": True, "probe": probe},
            {"name": "idle", "public": True, "probe": ""},
            {"name": "m_onnx", "public": False, "probe": ""},
        ],
        {
            "tidegate_requests_total": [
                ({"action": "infer", "model": "m", "status": "200"}, count),
                ({"action": "infer", "model": "m", "status": "502"}, failed),
                ({"action": "none", "model": "", "status": "401"}, count),
            ],
            "tidegate_request_seconds_bucket": [
                ({**labels, "le": "0.1"}, count / 2),
                ({**labels, "le": "0.2"}, count),
                ({**labels, "le": "+Inf"}, count),
            ],
            "gen_ai_client_token_usage_sum": [
                ({"gen_ai_request_model": "m", "gen_ai_token_type": "output"}, tokens)
            ],
            "tidegate_replica_inflight": [({"replica": "a:1"}, 7)],
            "tidegate_replica_tokens": [({"replica": "a:1"}, 300)],
        },
    )


def test_rates_and_latencies_are_of_the_time_between_the_looks():
    view = compare("http://g", _look(10, 100), _look(12, 140, 10, 60, "is late"))
    assert view.seconds == 2 and view.requests_per_s == (40 + 10 + 40) / 2
    idle, model = view.models  # internal models only if they were asked
    assert (idle.name, idle.requests_per_s, idle.p50_ms, idle.errors) == ("idle", 0, None, None)
    assert (model.name, model.requests_per_s) == ("m", 25)
    assert (model.p50_ms, model.p95_ms) == (pytest.approx(100), pytest.approx(190))
    assert (model.errors, model.refused, model.tokens_per_s) == (0.2, 0, 30)
    assert model.probe == "is late"
    (replica,) = view.replicas
    # Of all workers.
    assert (replica.inflight, replica.tokens, replica.ejected) == (7, 300, {"m": 3.0})
    console = Console(width=150)
    with console.capture() as capture:
        console.print(rendered(view))
    (line,) = (line for line in capture.get().splitlines() if line.startswith("a:1"))
    assert line.split() == ["a:1", "up,", "drained", "7", "300", "m", "(3", "s)", "wrong"]


def test_a_canary_has_a_row_of_what_it_answered_and_the_operators_requests_are_no_load():
    def look(at: float, count: float) -> Look:
        first = _look(at, count)
        arms = [
            ({"canary": "idle", "arm": arm, "status": "2xx", "le": bound}, share * count)
            for arm, share in (("canary", 0.5), ("stable", 0.25))
            for bound in ("0.1", "+Inf")
        ]
        samples = {
            **first.samples,
            "tidegate_canary_seconds_count": arms[::2],
            "tidegate_canary_seconds_bucket": arms,
            "tidegate_requests_total": [
                *first.samples["tidegate_requests_total"],
                ({"action": "admin", "model": "", "status": "200"}, 3 * count),
            ],
        }
        return replace(first, samples=samples)

    view = compare("http://g", look(10, 100), look(12, 140))
    canary = next(model for model in view.models if model.name == "idle")
    assert (canary.requests_per_s, canary.p50_ms, canary.errors) == (10, pytest.approx(50), 0)
    assert view.requests_per_s == (40 + 40) / 2


def test_without_a_stack_no_other_homes_gateway_is_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path))
    with pytest.raises(NothingRuns, match="tidegate up starts it"):
        Gateway.of(Paths.current(), None)


def test_a_restarted_gateway_counts_from_zero():
    view = compare("http://g", _look(10, 100), _look(12, 40))
    assert view.models[-1].requests_per_s == 20


@pytest.fixture(scope="module")
def busy(tmp_path_factory):
    """The address of an operator's listener, with the environment that ``top`` needs; requests
    come in all the time."""
    folder = tmp_path_factory.mktemp("top")
    (admin_port,) = free_ports(1)
    _, operator = KeyStore(folder / "keys.toml", folder / "pepper").create("operator", ADMIN)
    ended = threading.Event()
    with every_api(folder, "short", admin_port=admin_port) as (served, _):

        def ask() -> None:
            headers = {"Authorization": f"Bearer {served.key}"}
            with httpx.Client(base_url=served.url, headers=headers, timeout=60) as client:
                while not ended.wait(0.02):
                    client.post("/v2/models/p/infer", json=V2_BODY)

        asking = threading.Thread(target=ask)
        asking.start()
        environment = {**os.environ, "TIDEGATE_API_KEY": operator, "TIDEGATE_HOME": str(folder)}
        environment |= {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "150"}
        environment.pop("NO_COLOR", None)
        yield f"http://127.0.0.1:{admin_port}", environment
        ended.set()
        asking.join()


def _top(busy, *options, **changes) -> subprocess.CompletedProcess:
    url, environment = busy
    command = [sys.executable, "-m", "tidegate", "top", "--url", url, "--interval", "1", *options]
    return subprocess.run(
        command, capture_output=True, text=True, env={**environment, **changes}, timeout=120
    )


def test_one_document(busy):
    run = _top(busy, "--json")
    assert run.returncode == 0, run.stderr
    document = json.loads(run.stdout)
    assert document["requests_per_s"] > 0
    (model,) = [model for model in document["models"] if model["name"] == "p"]
    assert model["requests_per_s"] > 0 and model["errors"] == 0
    assert 0 < model["p50_ms"] <= model["p95_ms"]
    (replica,) = document["replicas"]
    assert (replica["health"], replica["ejected"]) == ("up", {})


def test_a_pipe_gets_one_view_without_colour(busy):
    for options in ((), ("--once",)):
        run = _top(busy, *options)
        assert run.returncode == 0, run.stderr
        assert not ANSI.search(run.stdout)
        assert re.search(r"^127\.0\.0\.1:\d+ +up +\d+", run.stdout, re.MULTILINE)
        assert re.search(r"^p +\d+\.\d +\d+\.\d +\d+\.\d +0\.0%", run.stdout, re.MULTILINE)


def test_a_terminal_gets_a_live_view_until_ctrl_c(busy):
    url, environment = busy
    main, terminal = pty.openpty()
    command = [sys.executable, "-m", "tidegate", "top", "--url", url, "--interval", "1"]
    process = subprocess.Popen(command, stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    shown = ""

    def has_shown(count: int) -> bool:
        nonlocal shown
        shown += os.read(main, 1 << 16).decode(errors="replace")
        return shown.count("requests/s in") >= count

    try:
        wait_for(lambda: has_shown(2), 120)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.wait()
        os.close(main)
    assert ANSI.search(shown) and "up" in shown


class _Elsewhere(BaseHTTPRequestHandler):
    """Sends each that asks to another address, and keeps what it was asked with."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.headers.get("Authorization", ""))
        self.send_response(302)
        self.send_header("Location", f"http://localhost:{self.server.server_port}/login")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_the_key_goes_to_the_gateway_alone_and_to_no_proxy_or_other_address(monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), _Elsewhere) as elsewhere:
        threading.Thread(target=elsewhere.serve_forever).start()
        url = f"http://127.0.0.1:{elsewhere.server_port}"
        monkeypatch.setenv("http_proxy", url)
        monkeypatch.delenv("no_proxy", raising=False)
        with pytest.raises(ServingError, match=r"no gateway answers at http://127\.0\.0\.1:1"):
            Gateway("http://127.0.0.1:1", "tg_key").look()
        assert ask("http://127.0.0.1:1", "", "tg_key")[0] is False
        assert not _Elsewhere.asked
        with pytest.raises(ServingError, match=r"/metrics answers 302: is it the operator's"):
            Gateway(url, "tg_key").look()
        elsewhere.shutdown()
    assert _Elsewhere.asked == ["Bearer tg_key"]


@pytest.mark.parametrize("url", ["127.0.0.1:8082", "ftp://a", "http://", "http://a:x", "a b"])
def test_what_is_no_url_is_wrong_usage(url, monkeypatch, tmp_path):
    monkeypatch.setenv("TIDEGATE_API_KEY", "tg_key")
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path))
    with pytest.raises(UsageError, match="write http://HOST:PORT"):
        Gateway.of(Paths.current(), url)


def test_a_wrong_key_and_nobody_there_say_what_to_do(busy):
    refused = _top(busy, "--once", TIDEGATE_API_KEY="tg_wrong")
    assert refused.returncode == 1 and "the key is not valid" in refused.stderr
    _, environment = busy
    nobody = _top(("http://127.0.0.1:1", environment), "--json")
    assert (nobody.returncode, nobody.stdout) == (1, "")
    assert "no gateway answers at http://127.0.0.1:1" in nobody.stderr

"""``python -m loadtests`` as a user runs it, against a real stack."""

import json
import signal
import subprocess
import sys
import time

import httpx
import pytest

from serving.triton.ports import free_ports
from tests.running import ROOT, RunningStack, environment, wait_until
from tidegate.app.key_store import KeyStore

NAMES = (
    "/v1/text_embedding",
    "/v1/embeddings (4 texts)",
    "/v2/models/text_embedding/infer",
    "ModelInfer text_embedding",
)


def start(stack: RunningStack, *arguments: str, **environ: str) -> subprocess.Popen[str]:
    variables = {
        "TIDEGATE_URL": stack.url,
        "TIDEGATE_TRITON_GRPC_ADDRESS": stack.grpc_address,
        **environ,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "loadtests", *arguments],
        env={**environment(stack.home), **variables},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(stack: RunningStack, *arguments: str, **environ: str) -> tuple[int, str, str]:
    """The exit code, stdout and stderr of a headless run."""
    with start(stack, "--headless", *arguments, **environ) as process:
        output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors


def test_headless_prints_its_table_and_passes(stack, tmp_path):
    file = tmp_path / "figures.json"
    code, output, errors = run(stack, "--users=4", "--run-time=4", f"--json={file}")
    assert code == 0, output + errors
    assert "PASS: " in output
    for name in (*NAMES, "Aggregated"):
        assert name in output
    document = json.loads(file.read_text())
    assert document["passed"] is True
    assert {row["name"] for row in document["routes"]} == set(NAMES)
    for row in document["routes"]:
        assert row["requests"] > 0
        assert row["failures"] == 0
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]


@pytest.mark.parametrize(
    ("pipeline", "apis"),
    [
        ("text_embedding", ("task", "v2", "v2-binary", "openai", "grpc", "grpc-stream")),
        ("chat", ("chat", "grpc-stream=1.5")),
        ("image_classification", ("task",)),
    ],
)
def test_a_pipeline_is_called_over_each_of_its_apis(stack, tmp_path, pipeline, apis):
    file = tmp_path / "figures.json"
    arguments = [argument for api in apis for argument in ("--api", api)]
    arguments += ["--pipeline", pipeline, "--gateway-grpc", f"127.0.0.1:{stack.grpc_api_port}"]
    names = {f"{pipeline} ({api.partition('=')[0]})" for api in apis}
    # An API is drawn for each request: where an answer takes seconds, these are few.
    for seconds in (12, 60, 120):
        limits = ("--users=8", f"--run-time={seconds}", f"--json={file}")
        code, output, errors = run(stack, *arguments, *limits)
        assert code == 0, output + errors
        document = json.loads(file.read_text())
        called = {row["name"] for row in document["routes"]}
        if called == names:
            break
    assert called == names
    parts = {(row["name"], row["part"]) for row in document["parts"]}
    streamed = names if pipeline == "chat" else set()
    assert parts == {(name, part) for name in streamed for part in ("first_token", "gap")}
    total = sum(row["requests"] for row in document["routes"])
    assert f"PASS: {total} requests" in output  # the parts of streams are none


def test_what_a_pipeline_does_not_offer_is_refused_before_locust_starts(stack):
    for arguments, said in (
        (("--pipeline=nothing",), "does not serve nothing"),
        (("--pipeline=chat", "--api=soap"), "--api soap: choose from task, v2"),
        (("--pipeline=chat", "--api=chat=often"), "write an API and its weight, as in task=3"),
        (("--pipeline=chat", "--api=grpc-stream"), "needs the gateway's port"),
        (("--api=chat",), "--api is of the pipeline of --pipeline"),
    ):
        code, _, errors = run(stack, *arguments)
        assert code == 2, errors
        assert said in errors


def test_one_protocol_and_an_enforced_p99_limit(stack):
    arguments = ("--only=grpc", "--users=1", "--run-time=2", "--max-p99-ms=0.01")
    code, output, errors = run(stack, *arguments)
    assert code == 1, output + errors
    assert "FAIL: ModelInfer text_embedding: p99 " in output
    assert "/v1/" not in output


def test_a_wrong_key_is_refused_before_locust_starts(stack):
    code, _, errors = run(stack, TIDEGATE_API_KEY="tg_wrong")
    assert code == 2
    assert errors.count("\n") == 1
    assert "refuses the API key (HTTP 401): set TIDEGATE_API_KEY" in errors


@pytest.mark.parametrize("only", ["rest", "grpc"])
def test_without_a_stack_it_says_make_up(stack, only):
    (port,) = free_ports(1)
    nowhere = {
        "TIDEGATE_URL": f"http://127.0.0.1:{port}",
        "TIDEGATE_TRITON_GRPC_ADDRESS": f"127.0.0.1:{port}",
    }
    code, _, errors = run(stack, f"--only={only}", **nowhere)
    assert code == 2
    assert errors.count("\n") == 1
    assert "run `make up`" in errors


def test_a_key_revoked_in_the_middle_fails_the_run(stack):
    state = stack.home / ".tidegate"
    store = KeyStore(state / "keys.toml", state / "pepper")
    _, key = store.create("load-test")
    arguments = ("--headless", "--only=rest", "--users=2", "--run-time=6")
    with start(stack, *arguments, TIDEGATE_API_KEY=key) as process:
        line = next(line for line in process.stderr if "All users spawned" in line)
        time.sleep(1)  # some requests must be answered first
        store.revoke("load-test")
        output, errors = process.communicate(timeout=300)
    assert process.returncode == 1, line + output + errors
    assert "HTTP 401: no valid API key" in output
    assert "FAIL: /v1/text_embedding: " in output
    assert " 0(0.00%)" not in output.partition("Aggregated")[0]


class UI:
    """Locust's UI, called as a browser would."""

    def __init__(self, stack: RunningStack) -> None:
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        self.process = start(stack, "--users=4", f"--ui-port={port}")

    def ask(self, path: str, **form: str) -> str:
        with httpx.Client(base_url=self.url, timeout=30) as client:
            return (client.post(path, data=form) if form else client.get(path)).text

    def answers(self) -> bool:
        try:
            return "<title>Locust" in self.ask("/")
        except httpx.TransportError:
            return False

    def requests(self) -> dict[str, int]:
        stats = json.loads(self.ask("/stats/requests"))["stats"]
        return {row["name"]: row["num_requests"] for row in stats}


@pytest.fixture
def ui(stack):
    opened = UI(stack)
    with opened.process:
        try:
            wait_until(opened.answers, 60, "Locust's UI answers")
            yield opened
        finally:
            opened.process.kill()


def test_the_ui_runs_a_test_and_ctrl_c_ends_it_with_the_verdict(stack, ui):
    ui.ask("/swarm", user_count="4", spawn_rate="4", host=stack.url)
    wait_until(lambda: set(NAMES) <= set(ui.requests()), 30, "each route is asked")
    ui.process.send_signal(signal.SIGINT)
    output, errors = ui.process.communicate(timeout=120)
    assert ui.process.returncode == 0, output + errors
    assert "PASS: " in output
    assert "Traceback" not in errors


def test_the_ui_cannot_send_the_key_elsewhere(stack, ui):
    ui.ask("/swarm", user_count="2", spawn_rate="2", host=f"http://{stack.http_address}")
    wait_until(lambda: ui.requests().get("ModelInfer text_embedding", 0) > 0, 30, "gRPC is asked")
    assert not any(name.startswith("/") for name in ui.requests())
    ui.process.send_signal(signal.SIGINT)
    output, _ = ui.process.communicate(timeout=120)
    assert ui.process.returncode == 1
    assert "the API key is not sent to" in output

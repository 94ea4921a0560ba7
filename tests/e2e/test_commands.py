"""The verbs that talk to a running stack, as a user types them."""

import json
import subprocess
import sys

import pytest

from tests.running import environment


@pytest.fixture
def demo(stack, monkeypatch):
    monkeypatch.setenv("TIDEGATE_TRITON_GRPC_ADDRESS", stack.grpc_address)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return stack.tidegate("demo", "--triton", stack.grpc_address, *arguments)

    return run


def test_demo_shows_similarities_times_and_the_photos_label(demo):
    run = demo()
    assert run.returncode == 0, run.stderr
    assert "Where is my parcel?" in run.stdout
    assert "text_embedding_onnx: compute" in run.stdout
    assert "espresso" in run.stdout
    assert "What is the capital of France?" in run.stdout
    assert "Paris" in run.stdout.splitlines()[-1]
    assert "\x1b[" not in run.stdout  # colour only on terminals


def test_demo_as_json_adds_up(demo):
    result = json.loads(demo("--json").stdout)
    similarity = result["similarity"]
    assert [row[index] for index, row in enumerate(similarity)] == pytest.approx([1] * 5, abs=1e-3)
    parcel_order, parcel_cat = similarity[0][1], similarity[0][4]
    assert parcel_order > parcel_cat + 0.2
    inside = sum(s["queue_ms"] + s["compute_ms"] for s in result["steps"].values())
    # Triton's means include the golden samples, which queue behind the demo's own requests.
    assert 0 < inside < 1.5 * result["upstream_ms"]
    assert 0 < result["gateway_ms"] < result["upstream_ms"]
    assert result["photo"]["labels"][0]["label"] == "espresso"
    assert "Paris" in result["chat"]["answer"]


def _run(home, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tidegate", *arguments],
        env=environment(home),
        capture_output=True,
        text=True,
    )


def test_demo_without_a_stack_says_how_to_start_one(tmp_path):
    run = _run(tmp_path, "demo", "--url", "http://127.0.0.1:9")
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1
    assert "make up" in run.stderr


def test_demo_with_a_key_that_is_refused_says_so(stack, monkeypatch):
    monkeypatch.setattr(
        "tests.running.environment",
        lambda home: {**environment(home), "TIDEGATE_API_KEY": "tg_wrong"},
    )
    run = stack.tidegate("demo", "--triton", stack.grpc_address)
    assert run.returncode == 1
    assert "no valid API key" in run.stderr


def test_keys_are_created_listed_and_revoked(tmp_path):
    key = _run(tmp_path, "keys", "create", "my app").stdout.strip()
    assert key.startswith("tg_")
    created = json.loads(_run(tmp_path, "keys", "create", "other", "--json").stdout)
    listed = json.loads(_run(tmp_path, "keys", "list", "--json").stdout)
    assert [(record["name"], record["revoked"]) for record in listed] == [
        ("my app", ""),
        ("other", ""),
    ]
    assert listed[1]["key_id"] == created["id"]
    assert "hmac" not in str(listed)
    assert _run(tmp_path, "keys", "revoke", "my app").returncode == 0
    headings, first, second = _run(tmp_path, "keys", "list").stdout.splitlines()
    assert headings.split() == ["id", "name", "tenant/roles", "created", "state"]
    assert "revoked" in first
    assert second.endswith("valid")
    assert key not in first + second


def test_a_key_without_a_tenant_is_listed_as_one(tmp_path):
    _run(tmp_path, "keys", "create", "early")
    (tmp_path / ".tidegate" / "gateway.toml").write_text("[tenants.acme]\nmodels = ['*']\n")
    _run(tmp_path, "keys", "create", "later", "--tenant", "acme")
    listed = {
        key["name"]: key for key in json.loads(_run(tmp_path, "keys", "list", "--json").stdout)
    }
    assert (listed["early"]["state"], listed["later"]["faults"]) == ("valid", [])
    shown = _run(tmp_path, "keys", "list").stdout
    assert f"valid, but {listed['early']['faults'][0]}" in shown
    assert "there is no [tenants.default]" in shown


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["keys", "revoke", "nobody"], 1, "tidegate keys list"),
        (["keys", "create", ""], 2, "1 to 64 printable"),
        (["no_such_verb"], 2, "No such command"),
        (["up", "--gateway-port", "0"], 2, "1<=x<=65535"),
    ],
)
def test_exit_codes_and_messages(tmp_path, arguments, code, message):
    run = _run(tmp_path, *arguments)
    assert run.returncode == code
    assert message in run.stderr


@pytest.mark.parametrize("verb", ["up", "convert", "keys", "demo"])
def test_every_verb_has_help_with_an_example(tmp_path, verb):
    run = _run(tmp_path, verb, "--help")
    assert run.returncode == 0
    assert f"tidegate {verb}" in run.stdout

"""Two tenants, an operator and a client without a key, at every operation in the API's
description."""

import contextlib
import json
import re
import subprocess
import sys
import time

import httpx
import pytest

from tests.running import QUICK, launch, policy_of, stop, wait_ready, wait_until

POLICY = """
[tenants.texts]
models = ["text_*", "identity_fp32"]

[tenants.images]
models = ["image_*"]

[roles.reader]
actions = ["read"]

[[limits]]
scope = "key"
kind = "requests"
amount = 3
window_s = 60
principals = ["{limited}"]
"""
TEXT = {"text": "Where is my parcel?"}


@pytest.fixture(scope="module")
def governed(built):
    """A stack with ``POLICY``; ``keys`` has a key for each caller."""
    with policy_of(built) as policy, contextlib.ExitStack() as started:
        running = launch(built, *QUICK)
        started.callback(_ended_well, running)
        wait_ready(running)
        running.keys = {
            name: _key(running, name, *flags)
            for name, flags in {
                "texts": ("--tenant", "texts"),
                "images": ("--tenant", "images"),
                "reader": ("--tenant", "texts", "--role", "reader"),
                "stranger": ("--tenant", "nobody"),
                "limited": ("--tenant", "texts"),
                "expired": ("--tenant", "texts", "--expires", "1s"),
            }.items()
        }
        limited = running.keys["limited"].split("_")[1]
        policy.write_text(POLICY.format(limited=limited))
        wait_until(
            lambda: _call(running, "stranger", "GET", "/v1/models").status_code == 403, 60, "policy"
        )
        # What it grants beyond no policy: a role that nobody had.
        wait_until(
            lambda: _call(running, "reader", "GET", "/v1/models").status_code == 200, 60, "roles"
        )
        yield running


def _ended_well(running):
    assert stop(running) == 0


def _key(running, name, *flags):
    run = running.tidegate("keys", "create", name, *flags, "--json")
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)["key"]


def _call(running, tenant, method, path, **options):
    headers = {"Authorization": f"Bearer {running.keys[tenant]}"} if tenant else {}
    return httpx.request(method, running.url + path, headers=headers, timeout=30, **options)


def _operations(document):
    for path, item in document["paths"].items():
        parameters = {p["name"]: p["example"] for p in item.get("parameters", [])}
        for method in ("get", "post"):
            if method in item:
                content = item[method].get("requestBody", {}).get("content", {})
                examples = content.get("application/json", {}).get("examples", {})
                bodies = [example["value"] for example in examples.values()] or [None]
                yield method.upper(), path.format(**parameters), bodies[0]


@pytest.fixture(scope="module")
def operations(governed):
    """All operations that the operator may see."""
    return list(_operations(governed.get("/openapi.json").json()))


def test_no_tenant_reaches_anothers_models(governed, operations):
    """Each operation on a model answers the other tenant as if the model did not exist."""
    count = 0
    for method, path, body in operations:
        for tenant, foreign in (
            ("texts", "image_classification"),
            ("images", "text_embedding"),
            ("images", "identity_fp32"),
        ):
            named = foreign in path or (isinstance(body, dict) and body.get("model") == foreign)
            if not named:
                continue
            response = _call(governed, tenant, method, path, json=body)
            assert response.status_code == 404, f"{tenant} {method} {path}: {response.text}"
            missing = re.sub(foreign, "no_such_model", path)
            other = (
                {**body, "model": "no_such_model"}
                if isinstance(body, dict) and "model" in body
                else body
            )
            same = _call(governed, tenant, method, missing, json=other)
            assert same.status_code == 404
            assert _without(response.text, foreign) == _without(same.text, "no_such_model")
            count += 1
    assert count > 15


def _without(text, name):
    """The response text without the parts that always differ: the model's name and the request
    id."""
    return re.sub(r"[0-9a-f]{16}", "ID", text.replace(name, "NAME"))


def test_every_list_shows_only_the_callers_models(governed):
    listed = {m["id"] for m in _call(governed, "texts", "GET", "/v1/models").json()["data"]}
    assert listed == {"text_embedding"}
    described = _call(governed, "images", "GET", "/openapi.json").json()["paths"]
    assert "/v1/image_classification" in described and "/v1/text_embedding" not in described
    assert _call(governed, "texts", "POST", "/v1/text_embedding", json=TEXT).status_code == 200


@pytest.mark.parametrize("route", ["config", "stats"])
def test_a_pipelines_steps_are_visible_to_its_callers_only(governed, route):
    """``images`` has no glob for the text models, and gets the same answer as for any name."""
    foreign, missing = (f"/v2/models/{name}/{route}" for name in ("text_embedding_pre", "nobody"))
    assert _call(governed, "texts", "GET", foreign).status_code == 200
    refused = _call(governed, "images", "GET", foreign)
    assert refused.status_code == 404
    same = _call(governed, "images", "GET", missing).text
    assert _without(refused.text, "text_embedding_pre") == _without(same, "nobody")
    listed = _call(governed, "images", "GET", "/v2/models/stats").json()["model_stats"]
    assert {stats["name"] for stats in listed} and all("image" in stats["name"] for stats in listed)


def test_a_reader_may_read_but_not_infer(governed):
    assert _call(governed, "reader", "GET", "/v2/models/text_embedding").status_code == 200
    assert _call(governed, "reader", "POST", "/v1/text_embedding", json=TEXT).status_code == 403


@pytest.mark.parametrize("who", ["stranger", "texts", "images", "reader"])
@pytest.mark.parametrize("path", ["/metrics", "/admin/policy", "/admin/replicas", "/admin/models"])
def test_the_admin_listener_is_for_the_operator_only(governed, who, path):
    url = f"http://127.0.0.1:{governed.admin_port}{path}"
    headers = {"Authorization": f"Bearer {governed.keys[who]}"}
    assert httpx.get(url).status_code == 401
    assert httpx.get(url, headers=headers).status_code == 403
    assert httpx.get(url, headers=governed.headers).status_code == 200
    # And these routes exist nowhere else.
    assert governed.get(path).status_code == 404


def test_documentation_needs_a_key_once_there_are_tenants(governed):
    assert httpx.get(f"{governed.url}/openapi.json").status_code == 401
    assert httpx.get(f"{governed.url}/healthz").status_code == 200


def test_an_expired_key_is_refused(governed):
    wait_until(
        lambda: _call(governed, "expired", "GET", "/v1/models").status_code == 401, 30, "expiry"
    )
    bad = httpx.get(f"{governed.url}/v1/models", headers={"Authorization": "Bearer nonsense"})
    ended = _call(governed, "expired", "GET", "/v1/models")
    assert _without(bad.text, "nonsense") == _without(ended.text, "nonsense")


def test_a_limit_is_in_every_response_and_enforced(governed):
    responses = [
        _call(governed, "limited", "POST", "/v1/text_embedding", json=TEXT) for _ in range(4)
    ]
    assert [response.status_code for response in responses] == [200, 200, 200, 429]
    assert [response.headers["x-ratelimit-remaining-requests"] for response in responses[:3]] == [
        "2",
        "1",
        "0",
    ]
    refused = responses[3]
    assert int(refused.headers["retry-after"]) >= 1
    assert "ratelimit" in refused.headers and "ratelimit-policy" in refused.headers
    assert refused.json()["code"] == "quota_exceeded"
    # Other callers are not affected, and neither is reading.
    assert _call(governed, "texts", "POST", "/v1/text_embedding", json=TEXT).status_code == 200
    assert _call(governed, "limited", "GET", "/v1/models").status_code == 200


def test_an_invalid_policy_changes_nothing_and_its_line_is_named(governed):
    policy = governed.home / ".tidegate" / "gateway.toml"
    right = policy.read_text()
    log = governed.home / ".tidegate" / "logs" / "gateway.log"
    try:
        _replace(policy, right + '\n[roles.bad]\nactions = ["fly"]\n')
        line = policy.read_text().splitlines().index('actions = ["fly"]') + 1
        wait_until(lambda: f"line {line}" in log.read_text(), 30, "the log's line")
        assert _call(governed, "stranger", "GET", "/v1/models").status_code == 403
        assert _call(governed, "texts", "GET", "/v1/models").status_code == 200
    finally:
        _replace(policy, right)
    time.sleep(0.5)


def _replace(path, text):
    """Replace it atomically: a half-written file may be a valid policy too."""
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").replace(path)


def test_the_grpc_api_enforces_the_same_policy(governed):
    import grpc
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    with grpc.insecure_channel(f"127.0.0.1:{governed.grpc_api_port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.ModelMetadataRequest(name="text_embedding")

        def ask(who):
            metadata = (("authorization", f"Bearer {governed.keys[who]}"),) if who else ()
            try:
                return stub.ModelMetadata(request, metadata=metadata, timeout=30).name
            except grpc.RpcError as error:
                return error.code().name

        assert [ask(who) for who in ("texts", "images", None)] == [
            "text_embedding",
            "NOT_FOUND",
            "UNAUTHENTICATED",
        ]


def test_no_secret_is_in_any_log_metric_or_answer(governed):
    state = governed.home / ".tidegate"
    secrets = [*governed.keys.values(), governed.key, (state / "triton.key").read_text().strip()]
    outputs = [
        path.read_text(errors="replace") for path in (state / "logs").glob("*") if path.is_file()
    ]
    outputs += [path.read_text() for path in state.glob("audit*.log")]
    outputs.append(governed.output)
    for path in ("/metrics", "/admin/policy", "/admin/models", "/admin/replicas"):
        url = f"http://127.0.0.1:{governed.admin_port}{path}"
        outputs.append(httpx.get(url, headers=governed.headers).text)
    outputs.append(_call(governed, "images", "POST", "/v1/text_embedding", json=TEXT).text)
    text = "\n".join(outputs)
    assert len(text) > 5000
    assert "tidegate_requests_total" in text
    for secret in secrets:
        assert len(secret) > 20
        # The id of an API key (tg_ID_SECRET_CHECKSUM) may be shown, the rest may not.
        assert (secret.split("_")[2] if secret.startswith("tg_") else secret) not in text


def test_decisions_are_in_an_audit_log_that_verifies(governed):
    def lines():
        return [
            json.loads(line)
            for line in (governed.home / ".tidegate/audit.log").read_text().splitlines()
        ]

    wait_until(lambda: any(line["decision"] == "deny" for line in lines()), 30, "the audit log")
    denied = next(
        e for e in lines() if e["model"] == "image_classification" and e["tenant"] == "texts"
    )
    assert (denied["action"], denied["status"], denied["decision"]) != ("", 200, "allow")
    run = governed.tidegate("audit", "verify")
    assert run.returncode == 0, run.stdout + run.stderr


def test_a_gateway_does_not_start_with_an_invalid_policy(tmp_path):
    (tmp_path / "gateway.toml").write_text("[tenants.a]\nmodels = ['*']\nmodls = []\n")
    run = subprocess.run(
        [sys.executable, "-m", "gateway"],
        env={"TIDEGATE_POLICY_FILE": str(tmp_path / "gateway.toml"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 2
    assert "line 3" in run.stderr and "Traceback" not in run.stderr

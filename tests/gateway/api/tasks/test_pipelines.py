"""The cards of the pipelines: each caller sees those that it may read."""

import time
from dataclasses import replace

import pytest

from gateway.metrics import FEWEST, LATEST
from gateway.models.catalogue import Catalogue
from tests.gateway.echo_app import echo_app, echo_model
from tests.gateway.request_contexts import context_of


@pytest.mark.parametrize(
    ("policy", "names"), [("", ["echo_llm"]), ("[tenants.default]\nmodels = ['other_*']\n", [])]
)
async def test_the_cards_of_what_the_caller_may_read(tmp_path, policy, names):
    async with echo_app(tmp_path, policy) as (client, key):
        headers = {"Authorization": f"Bearer {key}"}
        listed = (await client.get("/v1/pipelines", headers=headers)).json()["pipelines"]
        one = await client.get("/v1/pipelines/echo_llm", headers=headers)
        missing = await client.get("/v1/pipelines/nothing", headers=headers)
        assert (await client.get("/v1/pipelines")).status_code == 401
        document = (await client.get("/openapi.json", headers=headers)).json()
    assert [card["name"] for card in listed] == names
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
    assert "/v1/pipelines" in document["paths"]
    assert ("/v1/pipelines/{model}" in document["paths"]) == bool(names)
    if not names:
        assert one.status_code == 404
        return
    schema = echo_model().endpoint_schema.schema
    assert (
        one.json()
        == listed[0]
        == {
            "name": "echo_llm",
            "purpose": schema.purpose,
            "versions": ["1"],
            "routes": ["/v1/chat/completions", "/v1/responses", "/v1/completions"],
            "card": dict(schema.card),
            "latency": None,
            "example": dict(schema.example),
        }
    )


def _answered(metrics, model, seconds, status=200, action="infer"):
    catalogue = Catalogue({model.name: model})
    context = context_of({"type": "http", "path": "/", "headers": []}, None)
    context.action, context.model = action, model.name
    context.started = time.perf_counter() - seconds
    metrics.record(context, status, catalogue)


async def test_the_latency_is_that_of_the_requests_that_the_served_versions_answered(tmp_path):
    async with echo_app(tmp_path) as (client, key):
        gateway = client._transport.app.gateway

        async def latency():
            headers = {"Authorization": f"Bearer {key}"}
            return (await client.get("/v1/pipelines/echo_llm", headers=headers)).json()["latency"]

        model = gateway.catalogue.models["echo_llm"]
        for number in range(1, FEWEST):
            _answered(gateway.metrics, model, number)
        for _ in range(LATEST):
            _answered(gateway.metrics, model, 0.0, status=422)
            _answered(gateway.metrics, model, 0.0, action="read")
        assert await latency() is None  # too few were answered
        for number in range(FEWEST, LATEST + 1):
            _answered(gateway.metrics, model, number)
        shown = await latency()
        assert shown["requests"] == LATEST
        assert shown["p50_ms"] == pytest.approx(1000 * LATEST / 2, rel=1e-3)
        assert shown["p99_ms"] == pytest.approx(990 * LATEST, rel=1e-3)
        assert "cores" in shown["machine"]
        for _ in range(LATEST):
            _answered(gateway.metrics, model, 1000)
        assert (await latency())["p50_ms"] == pytest.approx(1e6, rel=1e-3)  # the latest count
        gateway.catalogue = Catalogue({"echo_llm": replace(model, versions=("2",))})
        assert await latency() is None

"""The cards of the pipelines: each caller sees those that it may read."""

import pytest

from tests.gateway.echo_app import echo_app, echo_model


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
            "example": dict(schema.example),
        }
    )

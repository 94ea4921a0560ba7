"""The operator's API: what it answers, to whom, and that it describes itself."""

import httpx
import pytest
from fastapi import FastAPI
from openapi_spec_validator import validate

from gateway.api.admin.routes import admin_router
from gateway.core import Gateway
from gateway.http.control import routes_of
from gateway.middleware import Middleware
from gateway.policy.principal import ADMIN
from gateway.settings import Settings
from gateway.upstream.drains import Drains
from tests.gateway.settled import write_settled
from tidegate.app.key_store import KeyStore

POLICY = """
[tenants.default]
models = ["*"]
[[limits]]
scope = "tenant"
kind = "requests"
amount = 10
[routes.chat]
"chat.v2" = 10
"""


@pytest.fixture
async def api(tmp_path):
    """A client of the admin API, and the keys of an operator and of a user."""
    store = KeyStore(tmp_path / "keys.toml", tmp_path / "pepper")
    keys = store.create("operator", ADMIN)[1], store.create("user")[1]
    write_settled(tmp_path / "gateway.toml", POLICY)
    gateway = Gateway(
        Settings(
            keys_file=tmp_path / "keys.toml",
            pepper_file=tmp_path / "pepper",
            policy_file=tmp_path / "gateway.toml",
            state_folder=tmp_path,
        )
    )
    await gateway.access_control.open()
    routes = routes_of(admin_router(gateway))
    transport = httpx.ASGITransport(Middleware(FastAPI(), gateway, routes))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client, *keys
    await gateway.pool.close()
    await gateway.access_control.close()


async def test_every_path_answers_the_operator_and_nobody_else(api):
    client, operator, user = api
    for path in ("/metrics", "/admin/policy", "/admin/replicas", "/admin/models", "/openapi.json"):
        for key, status in ((operator, 200), (user, 403), ("tg_wrong", 401)):
            response = await client.get(path, headers={"Authorization": f"Bearer {key}"})
            assert response.status_code == status, f"{path} {response.text}"
    assert (await client.get("/healthz")).json() == {"status": "ok"}


async def test_the_answers_have_their_fields(api):
    client, operator, _ = api
    client.headers["Authorization"] = f"Bearer {operator}"
    policy = (await client.get("/admin/policy")).json()
    assert set(policy) == {"version", "rules"}
    assert policy["rules"]["routes"] == {"chat": {"per": "caller", "chat.v2": 10}}
    (replica,) = (await client.get("/admin/replicas")).json()["replicas"]
    assert replica.pop("reason")
    assert replica.pop("health") in ("down", "unknown")
    assert replica == {
        "address": "127.0.0.1:8001",
        "inflight": 0,
        "tokens": 0,
        "models": [],
        "probes": {},
        "ejected": {},
        "drained": False,
        "leaving": False,
    }
    assert (await client.get("/admin/models")).json() == {
        "models": [],
        "faults": {},
        "fallbacks": {},
    }
    metrics = await client.get("/metrics")
    assert metrics.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert b"tidegate_requests" in metrics.content


async def test_a_replica_is_drained_and_the_drain_lifted(api, tmp_path):
    client, operator, user = api
    path, headers = "/admin/replicas/127.0.0.1:8001/drain", {"Authorization": f"Bearer {operator}"}
    assert (await client.put(path, headers={"Authorization": f"Bearer {user}"})).status_code == 403
    drained = await client.put(path, headers=headers)
    assert drained.json() == {"replica": "127.0.0.1:8001", "seconds": 60, "shared": False}
    assert Drains(tmp_path).current() == {"127.0.0.1:8001"}
    lifted = await client.delete(path, headers=headers)
    assert (lifted.status_code, Drains(tmp_path).current()) == (200, frozenset())
    for wrong in ("0", "nan", "soon", "3601"):
        response = await client.put(f"{path}?seconds={wrong}", headers=headers)
        assert response.status_code == 422 and "seconds must be a number" in response.text
    for stranger in ("127.0.0.1:8002", "..", "..%2fup.json"):
        response = await client.put(f"/admin/replicas/{stranger}/drain", headers=headers)
        assert response.status_code == 404, response.text
    assert list((tmp_path / "drains").iterdir()) == []


async def test_it_describes_itself(api):
    client, operator, _ = api
    response = await client.get("/openapi.json", headers={"Authorization": f"Bearer {operator}"})
    document = response.json()
    validate(document)
    assert {"/metrics", "/admin/policy", "/admin/replicas", "/admin/models"} < set(
        document["paths"]
    )

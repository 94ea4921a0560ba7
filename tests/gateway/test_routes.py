"""Every route declares what it needs of its caller; one that does not cannot be served."""

import pytest
from fastapi import APIRouter

from gateway.app import create_app
from gateway.http.control import ControlRoute
from gateway.http.handler import OPEN, Endpoint, Undeclared
from gateway.settings import Settings
from tests.gateway.undeclared import undeclared

FRAMEWORKS_OWN = {"/openapi.json": OPEN}  # ours comes first


async def test_every_route_declares_its_policy():
    routes = create_app(Settings()).app.routes
    assert undeclared(routes, FRAMEWORKS_OWN) == []
    assert len([route for route in routes if route.path.startswith(("/v1", "/v2"))]) >= 12


def test_a_handler_without_a_policy_is_not_served():
    async def forgotten(): ...

    with pytest.raises(Undeclared, match="forgotten declares no policy"):
        Endpoint(forgotten)
    with pytest.raises(Undeclared, match="forgotten declares no policy"):
        APIRouter(route_class=ControlRoute).get("/")(forgotten)

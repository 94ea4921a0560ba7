"""An operator's header chooses between a pipeline and its canary, whatever the weights say."""

import pytest

from gateway.core import PIPELINE, Gateway
from gateway.errors import Forbidden, InvalidRequest, NoCapacity
from gateway.models.catalogue import Catalogue, read_model
from gateway.policy.access import Access
from gateway.policy.gateway_toml import parse_rules
from gateway.policy.principal import ADMIN, USER, Principal
from gateway.policy.reload import InForce
from gateway.settings import Settings
from tests.gateway.fake_triton import public
from tests.gateway.request_contexts import context_of

POLICY = """
[tenants.default]
models = ["*"]
[routes.p]
"p.v2" = 10
"p.v3" = 10
[pipelines.p]
fallback = "spare"
"""


@pytest.fixture
async def gateway():
    gateway = Gateway(Settings(replicas=("127.0.0.1:1",)))
    rules = parse_rules(POLICY, "gateway.toml")
    gateway.access_control.policy.current = InForce(rules, Access(rules), "test")
    models = [
        read_model(public(name, **parameters), ("1",))
        for name, parameters in {"p": {}, "p.v2": {"canary_of": "p"}, "spare": {}}.items()
    ]
    gateway.catalogue = Catalogue({model.name: model for model in models})
    gateway.probes = {"p": "", "p.v2": "", "spare": ""}
    gateway.fallback_faults = {("p", "spare"): ""}
    yield gateway
    await gateway.pool.close()


def _asked(gateway: Gateway, chosen: str, grant=ADMIN):
    """A context whose header chooses this, and what serves it."""
    access = gateway.access_control.policy.current.access
    headers = [(PIPELINE, chosen.encode())] if chosen else []
    scope = {"type": "http", "path": "/", "headers": headers, "path_params": {"model": "p"}}
    context = context_of(scope, None, access=access)
    context.principal = Principal("tester", "tester", grant)
    name = gateway.destination(context, "p")
    return context, gateway.serving(context, gateway.catalogue.models[name])


@pytest.mark.parametrize("chosen", ["p", "p.v2"])
async def test_it_is_followed_and_counts_for_no_verdict(gateway, chosen):
    for _ in range(30):
        context, serving = _asked(gateway, chosen)
        assert serving == context.pipeline == chosen
        assert not context.canaries
    context, serving = _asked(gateway, "", USER)  # without it the weights decide
    assert serving in ("p", "p.v2")
    assert context.canaries == {"p.v2": 10, "p.v3": 10}


async def test_what_it_names_has_no_fallback(gateway, monkeypatch):
    monkeypatch.setattr(gateway.pool, "takes", lambda name: name == "spare")
    assert _asked(gateway, "", USER)[1] == "spare"
    assert _asked(gateway, "p.v2")[1] == "p.v2"


async def test_it_needs_the_right_to_admin(gateway):
    with pytest.raises(Forbidden):
        _asked(gateway, "p.v2", USER)


@pytest.mark.parametrize("chosen", ["spare", "p.v9", "P"])
async def test_what_is_not_routed_cannot_be_chosen(gateway, chosen):
    with pytest.raises(InvalidRequest, match=r"choose from p, p\.v2, p\.v3"):
        _asked(gateway, chosen)


async def test_a_canary_that_is_not_served_is_not_replaced_by_another(gateway):
    with pytest.raises(NoCapacity, match=r"p\.v3 is not being served"):
        _asked(gateway, "p.v3")

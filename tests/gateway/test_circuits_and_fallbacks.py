"""What the gateway makes of circuits and fallbacks: whom it refuses, and who answers instead."""

import asyncio
import json
import time

import grpc
import pytest
from tritonclient.grpc import service_pb2

from gateway.api.grpc.methods import parse_request, permitted_model
from gateway.api.grpc.wire import FEW_FIELDS
from gateway.api.v2.routes import V2Api
from gateway.core import Gateway
from gateway.errors import GatewayError, NoCapacity, UnknownModel, UpstreamError
from gateway.http.request_context import RequestContext
from gateway.models.catalogue import Catalogue, Model, read_model
from gateway.policy.access import Access
from gateway.policy.gateway_toml import parse_rules
from gateway.policy.principal import Principal
from gateway.policy.reload import InForce
from gateway.settings import Settings
from gateway.upstream.balancing import Health
from gateway.upstream.circuits import MARGIN, OPEN_S
from gateway.upstream.replicas import ReplicaPool
from tests.gateway.fake_triton import FakeTriton, failing, public
from tests.gateway.request_contexts import context_of
from tests.gateway.upstream.test_replicas import Connection

LEAST = round(MARGIN)
BODY = json.dumps(
    {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]}
).encode()


@pytest.fixture
async def triton():
    fake = FakeTriton()
    fake.models_asked = []
    fake.failing_models = set()

    async def answer(request):
        fake.models_asked.append(request.model_name)
        if request.model_name in fake.failing_models:
            return await failing(grpc.StatusCode.INTERNAL)(request)
        return 0.0

    fake.answer = answer
    fake.address = await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
async def gateway(triton):
    gateway = Gateway(Settings(replicas=(triton.address,)))
    yield gateway
    await gateway.pool.close()


@pytest.fixture
def clock(gateway):
    """The time of the circuits: ``clock[0]``, in monotonic seconds."""
    now = [1000.0]
    gateway.circuits._clock = lambda: now[0]
    return now


def _model(name: str, **parameters: str) -> Model:
    return read_model(public(name, **parameters), ("1",))


def _serve(gateway: Gateway, *models: Model) -> None:
    gateway.catalogue = Catalogue({model.name: model for model in models})


def _put_policy(gateway: Gateway, text: str) -> None:
    rules = parse_rules(text, "gateway.toml")
    gateway.access_control.policy.current = InForce(rules, Access(rules), "test")


def _context(name: str = "p", version: str = "", caller: str = "tester") -> RequestContext:
    """Of a request whose body is here, and whose client stays connected."""
    messages = [{"type": "http.request", "body": BODY}]

    async def receive():
        return messages.pop() if messages else await asyncio.Future()

    params = {"model": name, "version": version}
    context = context_of({"path": "/", "headers": [], "path_params": params}, receive)
    context.principal = Principal(caller, caller)
    return context


async def _infer(gateway: Gateway, caller: str = "tester") -> int:
    """The status of a V2 inference with ``p``, which is counted as the middleware does it."""
    context, status = _context(caller=caller), 200
    try:
        await V2Api(gateway).infer(context)
    except GatewayError as error:
        status = 503 if isinstance(error, NoCapacity) else 502
    await context.leave(None)
    gateway.finished(context, status)
    return status


async def test_a_caller_who_makes_a_model_fail_does_not_close_it_to_another_of_the_tenant(
    gateway, triton
):
    _serve(gateway, _model("p"))
    triton.failing_models = {"p"}
    statuses = [await _infer(gateway, "poisoner") for _ in range(LEAST + 3)]
    assert statuses == [502] * LEAST + [503] * 3
    triton.failing_models = set()
    assert await _infer(gateway, "neighbour") == 200
    assert await _infer(gateway, "poisoner") == 503
    assert set(gateway.circuits.open_ones("p")) == {"poisoner"}


def _drain(gateway: Gateway) -> None:
    gateway.pool.drain({"b:1"})


def _find_wrong(gateway: Gateway) -> None:
    gateway.pool.replicas[1].probes["p"] = "answers its golden sample wrongly in y"


def _connect_again(gateway: Gateway) -> None:
    gateway.pool.replicas[1].upstream.connection = Health.UNKNOWN


def _eject_where_nobody_else_is(gateway: Gateway) -> None:
    """Then what is ejected is asked."""
    gateway.pool.replicas[0].record("p").eject(time.monotonic())
    gateway.pool.replicas[1].upstream.connection = Health.DOWN


@pytest.mark.parametrize(
    "take_out", [_drain, _find_wrong, _connect_again, _eject_where_nobody_else_is]
)
async def test_a_replica_that_gets_no_requests_keeps_no_circuit_closed(take_out):
    gateway = Gateway(Settings(replicas=("a:1",)))
    await gateway.pool.close()
    gateway.pool = ReplicaPool(Connection, 8)
    gateway.pool.apply(["a:1", "b:1"])
    _serve(gateway, _model("p"))
    take_out(gateway)
    for _ in range(LEAST):
        context = _context()
        assert gateway.serving(context, gateway.catalogue.models["p"]) == "p"
        with pytest.raises(UpstreamError), gateway.pool.permit("p") as upstream:
            context.sent_to(upstream.address)
            raise UpstreamError("failed")
        assert context.replica == "a:1"
        gateway.finished(context, 502)
    with pytest.raises(NoCapacity, match="has failed most of your requests"):
        gateway.serving(_context(), gateway.catalogue.models["p"])


async def test_the_trial_of_a_canary_goes_to_the_canary(gateway, triton, clock):
    _serve(gateway, _model("p"), _model("p.v2", canary_of="p"))
    gateway.probes = {"p": "", "p.v2": ""}
    _put_policy(gateway, '[routes.p]\n"p.v2" = 100')
    triton.failing_models = {"p.v2"}
    assert [await _infer(gateway) for _ in range(LEAST + 1)] == [502] * LEAST + [200]
    assert triton.models_asked == ["p.v2"] * LEAST + ["p"]
    clock[0] += OPEN_S
    triton.models_asked.clear()
    assert [await _infer(gateway) for _ in range(2)] == [502, 200]
    assert triton.models_asked == ["p.v2", "p"]
    assert gateway.circuits.open_ones("p.v2") == {"tester": OPEN_S}
    triton.failing_models = set()
    clock[0] += OPEN_S
    assert await _infer(gateway) == 200
    assert triton.models_asked == ["p.v2", "p", "p.v2"]
    assert not gateway.circuits


async def test_what_the_stable_pipeline_answers_is_no_verdict_on_its_canary(gateway, triton, clock):
    """The canary's probe fails after the trial was begun, before it is sent."""
    _serve(gateway, _model("p"), _model("p.v2", canary_of="p"))
    gateway.probes = {"p": "", "p.v2": ""}
    _put_policy(gateway, '[routes.p]\n"p.v2" = 100')
    triton.failing_models = {"p.v2"}
    for _ in range(LEAST):
        await _infer(gateway)
    clock[0] += OPEN_S
    context = _context()
    context.scope["path_params"] = {"model": "p"}
    model = gateway.catalogue.models["p"]
    assert gateway.serving(context, model) == "p.v2"
    gateway.probes = {"p": "", "p.v2": "answers its golden sample wrongly in y"}
    assert gateway.serving(context, model) == "p"
    context.sent_to(triton.address)
    gateway.finished(context, 200)
    assert gateway.circuits.open_ones("p.v2") == {"tester": 0.0}


FALLBACK = '[pipelines.p]\nfallback = "{}"'


def _wide(name: str) -> Model:
    """A model whose endpoint differs from the others'."""
    config = public(name)
    config.input[0].dims[0] = 2
    return read_model(config, ("1",))


@pytest.fixture
def spare(gateway):
    """The gateway, whose ``p`` is gone: the fallback ``spare``, which is equal, answers for it."""
    _put_policy(gateway, FALLBACK.format("spare"))
    _serve(gateway, _model("p"), _model("spare"), _wide("wide"))
    gateway.compare_fallbacks()
    _serve(gateway, _model("spare"), _wide("wide"))
    gateway.compare_fallbacks()
    return gateway


async def test_what_is_not_served_is_compared_as_it_was_last(spare):
    assert spare.destination(_context(), "p") == "spare"
    assert spare.fallback_faults == {("p", "spare"): ""}


async def test_another_fallback_is_not_used_before_it_is_compared(spare):
    _put_policy(spare, FALLBACK.format("wide"))
    assert spare.destination(_context(), "p") == "p"
    spare.compare_fallbacks()  # with what ``p`` was like
    assert spare.destination(_context(), "p") == "p"
    assert "wide cannot answer for p: inputs.x" in spare.fallback_faults["p", "wide"]


async def test_what_was_never_served_has_no_fallback(gateway):
    _put_policy(gateway, FALLBACK.format("spare"))
    _serve(gateway, _model("spare"))
    gateway.compare_fallbacks()
    assert gateway.destination(_context(), "p") == "p"
    assert gateway.fallback_faults == {("p", "spare"): "both must be served once"}


async def test_a_fallback_that_changes_while_its_pipeline_is_away_is_compared_anew(spare):
    _serve(spare, _wide("spare"))
    spare.compare_fallbacks()
    assert spare.destination(_context(), "p") == "p"
    assert "spare cannot answer for p: inputs.x" in spare.fallback_faults["p", "spare"]


async def test_a_version_has_no_fallback_over_grpc_either(spare):
    message = service_pb2.ModelInferRequest(model_name="p", model_version="1")
    for number in range(FEW_FIELDS):  # so many that the model is looked up
        message.parameters[str(number)].bool_param = True
    context = _context()
    parts = parse_request(spare, context, message.SerializeToString())
    assert context.fallback == "spare"  # the version is not known yet
    with pytest.raises(UnknownModel):
        permitted_model(spare, context, "infer", parts.header)
    assert (context.fallback, context.fallback_of) == ("", "")


@pytest.mark.parametrize("status", [200, 502, 400])
async def test_while_one_request_is_the_trial_the_fallback_answers_the_others(
    gateway, triton, clock, status
):
    """Also before the trial's body has been read."""
    _put_policy(gateway, FALLBACK.format("spare"))
    _serve(gateway, _model("p"), _model("spare"))
    gateway.compare_fallbacks()
    triton.failing_models = {"p"}
    assert [await _infer(gateway) for _ in range(LEAST + 1)] == [502] * LEAST + [200]
    assert triton.models_asked == ["p"] * LEAST + ["spare"]
    clock[0] += OPEN_S
    trial, other = _context(), _context()
    assert gateway.destination(trial, "p") == "p"
    assert gateway.destination(trial, "p") == "p"  # gRPC asks twice
    assert gateway.destination(other, "p") == "spare"
    if status != 400:
        assert gateway.serving(trial, gateway.catalogue.models["p"]) == "p"
        trial.sent_to(triton.address)
    gateway.finished(trial, status)
    later = {200: "p", 400: "p", 502: "spare"}[status]
    assert gateway.destination(_context(), "p") == later
    assert bool(gateway.circuits) == (status != 200)

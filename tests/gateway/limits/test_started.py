"""Work sent to the model costs something, however its caller ended it; other work is free."""

import asyncio

import pytest

from gateway.errors import (
    DeadlineExceeded,
    GatewayError,
    NoCapacity,
    TooLarge,
    Unauthenticated,
    UpstreamError,
)
from gateway.http.request_context import ClientGone
from gateway.limits.limit import Subject, checks_of
from gateway.limits.limiter import Limiter
from tests.gateway.limits.made import limit_of

TOKENS = limit_of("model", "tokens", 1000, 3600)
SUBJECT = Subject("acme", "k1", "chat")


async def _remaining(
    error: BaseException | None, *, started: bool, counted: int | None = None
) -> int:
    limiter = Limiter(clock=lambda: 1000.0)
    checks = checks_of([TOKENS], SUBJECT, tokens=400)
    try:
        async with limiter.admit(checks) as admission:
            if started:
                admission.started()
            if counted is not None:
                admission.settle(counted)
            if error:
                raise error
    except BaseException as raised:
        assert raised is error
    used = limiter.local.admit(checks_of([TOKENS], SUBJECT, tokens=0), 1000.0).used[0]
    return round(1000 - used)


BY_ITS_CALLER = [DeadlineExceeded("x"), asyncio.CancelledError(), ClientGone()]
BY_US = [NoCapacity("x"), UpstreamError("x"), TooLarge("x")]


@pytest.mark.parametrize("error", BY_ITS_CALLER)
async def test_work_that_its_caller_ended_costs_what_it_reserved_or_what_was_counted(error):
    assert await _remaining(error, started=True) == 600
    assert await _remaining(error, started=True, counted=70) == 930
    assert await _remaining(error, started=False) == 1000


@pytest.mark.parametrize("error", BY_US)
async def test_work_that_failed_is_free_unless_it_was_counted(error):
    assert await _remaining(error, started=True) == 1000
    assert await _remaining(error, started=True, counted=70) == 930
    assert await _remaining(error, started=False) == 1000


async def test_work_that_ended_well_costs_what_it_reserved():
    assert await _remaining(None, started=True) == 600


async def test_a_stream_whose_right_ended_is_interrupted_and_pays():
    """``AccessControl.bounded`` cancels within, and raises its error outside of the admission."""
    limiter = Limiter(clock=lambda: 1000.0)

    async def stream():
        try:
            async with limiter.admit(checks_of([TOKENS], SUBJECT, tokens=400)) as admission:
                admission.started()
                await asyncio.Future()
        except asyncio.CancelledError:
            raise Unauthenticated("x") from None

    task = asyncio.create_task(stream())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(GatewayError):
        await task
    assert limiter.local.admit(checks_of([TOKENS], SUBJECT, tokens=0), 1000.0).used[0] == 400

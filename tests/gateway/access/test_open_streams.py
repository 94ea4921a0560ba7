"""Open streams: each is ended by the check that follows the loss of its caller's right to it."""

import asyncio
import contextlib
import time
from datetime import timedelta

import pytest

from gateway.access.control import AccessControl
from gateway.errors import Forbidden, GatewayError, NotFound, QuotaExceeded, Unauthenticated
from gateway.http.request_context import RequestContext
from gateway.metrics import Metrics
from gateway.models.catalogue import Model
from gateway.policy.principal import Grant
from gateway.settings import Settings
from gateway.supervision import Supervisor, every
from tests.gateway.issuer import Issuer, SigningKey, fetches_ended
from tests.gateway.limits.redis_server import RedisServer
from tidegate.app.key_store import KeyStore

POLICY = """\
[tenants.acme]
models = ["chat", "text_*"]

[tenants.other]
models = ["*"]

[roles.analyst]
actions = ["read", "infer"]
models = ["chat"]
"""
CHECK_S = 0.03  # the gateway checks every ``background.ACCESS_CHECK_S``
HANG_S = 30.0  # for what should come with the next check


def model_of(name: str) -> Model:
    return Model(name, ("1",), 0, {}, {}, decoupled=True, endpoint_schema=None, probe=None)


class World:
    """An AccessControl on its own files, with its two loops running, faster than the gateway's."""

    def __init__(self, folder, **settings) -> None:
        self.folder = folder
        self.store = KeyStore(folder / "keys.toml", folder / "pepper")
        self.policy = folder / "gateway.toml"
        self.settings = Settings(
            keys_file=folder / "keys.toml",
            pepper_file=folder / "pepper",
            policy_file=self.policy,
            state_folder=folder,
            **settings,
        )

    async def open(self) -> None:
        self.access_control = AccessControl(self.settings, Supervisor(lambda name: None), Metrics())
        await self.access_control.open()
        self._rounds = {"rules": 0, "rights": 0}  # of each loop that are over
        self._loops = [
            asyncio.create_task(every(CHECK_S, self._refresh, lambda: self._count("rules"))),
            asyncio.create_task(
                every(CHECK_S, self.access_control.check_streams, lambda: self._count("rights"))
            ),
        ]

    async def close(self) -> None:
        for loop in self._loops:
            loop.cancel()
        await fetches_ended()
        await self.access_control.close()

    async def _refresh(self) -> None:
        self.access_control.refresh()

    def _count(self, loop: str) -> None:
        self._rounds[loop] += 1

    async def checked(self) -> None:
        """Wait until the files as they are now were read, and every stream was checked by them."""
        for loop in ("rules", "rights"):
            before = self._rounds[loop]
            async with asyncio.timeout(HANG_S):
                while self._rounds[loop] < before + 2:  # noqa: ASYNC110 - nobody signals it
                    await asyncio.sleep(CHECK_S / 3)

    def write(self, policy: str) -> None:
        new = self.folder / "new.toml"
        new.write_text(policy)
        new.replace(self.policy)

    async def stream(self, credential: str, model: str = "chat") -> "Stream":
        """An admitted stream on which nothing happens."""
        stream = Stream(self, credential, model)
        await stream.begin()
        return stream


class Stream:
    def __init__(self, world: World, credential: str, model: str) -> None:
        headers = [(b"authorization", b"Bearer " + credential.encode())]
        access = world.access_control.policy.current.access
        self.context = RequestContext(
            {"path": "/v1/x", "headers": headers}, None, access, 1000, 600
        )
        self.world, self.model = world, model
        self.error: GatewayError | None = None

    async def begin(self) -> None:
        started = asyncio.Event()
        self.task = asyncio.create_task(self._run(started))
        waiting = asyncio.ensure_future(started.wait())
        await asyncio.wait([waiting, self.task], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self.task.done():
            raise self.error

    async def _run(self, started: asyncio.Event) -> None:
        access_control = self.world.access_control
        try:
            await access_control.identify(self.context)
            self.context.require("infer", self.model)
            with access_control.bounded(self.context):
                async with access_control.admit(self.context, model_of(self.model)) as admission:
                    admission.started()
                    started.set()
                    await asyncio.Future()
        except GatewayError as error:
            self.error = error

    async def ended(self) -> GatewayError | None:
        """The error with which it ends; None if it is still open."""
        await asyncio.wait([self.task], timeout=HANG_S)
        return self.error

    async def stays_open(self) -> bool:
        """Whether it is still open after the next check."""
        await self.world.checked()
        return self.error is None and not self.task.done()

    async def leave(self) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task


@pytest.fixture
async def world(tmp_path, monkeypatch):
    monkeypatch.setattr("gateway.access.control.STEADY_S", 0)
    world = World(tmp_path)
    world.policy.write_text(POLICY)
    await world.open()
    yield world
    await world.close()


def _key(world, *grant, **more) -> str:
    key = world.store.create("app", Grant(*grant), **more)[1]
    world.access_control.refresh()
    return key


def _without_the_key(world) -> None:
    path = world.folder / "keys.toml"
    path.write_text("")


def _other_models(world) -> None:
    path = world.folder / "keys.toml"
    text = path.read_text()
    assert 'models = ["*"]' in text
    path.write_text(text.replace('models = ["*"]', 'models = ["text_*"]'))


def _other_tenant(world) -> None:
    path = world.folder / "keys.toml"
    path.write_text(path.read_text().replace('tenant = "acme"', 'tenant = "other"'))


def _no_infer(world) -> None:
    path = world.folder / "keys.toml"
    text = path.read_text()
    assert '"infer", ' in text
    path.write_text(text.replace('"infer", ', ""))


def _other_pepper(world) -> None:
    (world.folder / "pepper").write_bytes(b"x" * 32)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda world: world.store.revoke("app"), Unauthenticated),
        (lambda world: (world.folder / "keys.toml").unlink(), Unauthenticated),
        (_without_the_key, Unauthenticated),
        (_other_pepper, Unauthenticated),
        (_other_models, NotFound),
        (_other_tenant, Forbidden),
        (_no_infer, Forbidden),
        (lambda w: w.write(POLICY.replace('"chat", "text', '"text')), NotFound),
        (lambda w: w.policy.write_text(POLICY.replace('"chat", "text', '"text')), NotFound),
        (lambda w: w.policy.write_text(POLICY.replace('["chat"]', '["text_*"]')), NotFound),
        (lambda w: w.policy.write_text(POLICY.replace('"read", "infer"', '"read"')), Forbidden),
        (lambda w: w.write(POLICY.replace("roles.analyst", "roles.reader")), NotFound),
        (lambda w: w.write(POLICY.replace("tenants.acme", "tenants.bcme")), NotFound),
    ],
)
async def test_a_stream_ends_when_its_callers_rights_do(world, change, error):
    stream = await world.stream(_key(world, "acme", ("analyst",)))
    assert await stream.stays_open()
    change(world)
    assert isinstance(await stream.ended(), error)
    assert len(world.access_control.limiter.local) == 0


async def test_a_stream_stays_open_when_others_rights_end_and_its_own_change(world):
    stream = await world.stream(_key(world, "acme", ("analyst",)))
    world.store.create("second")
    world.store.revoke("second")
    world.write(POLICY.replace('["chat"]', '["chat", "more"]'))
    assert await stream.stays_open()
    role = world.access_control.policy.current.rules.roles["analyst"]
    assert role.models == ["chat", "more"]
    assert stream.context.access is world.access_control.policy.current.access
    await stream.leave()


async def test_a_key_that_expires(world):
    stream = await world.stream(_key(world, "acme", lifetime=timedelta(seconds=2)))
    (record,) = world.store.records()
    assert isinstance(await stream.ended(), Unauthenticated)
    assert record.ends <= time.time()


async def test_a_key_revoked_while_the_request_was_read(world):
    """Between the identity and the stream: a body may take half a minute."""
    key = _key(world, "acme")
    stream = Stream(world, key, "chat")
    await world.access_control.identify(stream.context)
    world.store.revoke("app")
    await world.checked()
    world.access_control.identify = lambda context: asyncio.sleep(0)
    await stream.begin()
    assert isinstance(await stream.ended(), Unauthenticated)


ISSUER = """
[issuers.corp]
issuer = "{url}"
audience = ["tidegate"]
tenant = "acme"
default_roles = ["analyst"]
leeway_s = 1
"""


@pytest.fixture
async def issuer(world):
    issuer = Issuer()
    world.write(POLICY + ISSUER.format(url=issuer.url) + "# end\n")
    world.access_control.refresh()
    yield issuer
    issuer.close()


async def test_a_token_that_expires(world, issuer):
    ends = time.time() + 2
    stream = await world.stream(issuer.token(exp=ends))
    assert isinstance(await stream.ended(), Unauthenticated)
    assert ends + 1 <= time.time()  # the leeway counts as at the API


@pytest.mark.parametrize("change", ["removed", "audience", "role", "keys"])
async def test_a_token_that_would_no_longer_be_accepted(world, issuer, change, monkeypatch):
    monkeypatch.setattr("gateway.identity.jwks.FRESH_S", 0.05)
    monkeypatch.setattr("gateway.identity.jwks.COOL_DOWN_S", 0.1)
    stream = await world.stream(issuer.token())
    table = ISSUER.format(url=issuer.url)
    if change == "removed":
        world.write(POLICY + "# end\n")
    elif change == "audience":
        world.write(POLICY + table.replace('["tidegate"]', '["others"]') + "# end\n")
    elif change == "role":
        world.write(POLICY + table.replace('["analyst"]', "[]") + "# end\n")
    else:
        issuer.keys = [SigningKey("two")]
    expected = NotFound if change == "role" else Unauthenticated
    assert isinstance(await stream.ended(), expected)


async def test_an_issuer_that_hangs_delays_nobody_else(world, issuer, monkeypatch):
    """Its keys must be read again, and it does not respond: the other stream is ended meanwhile."""
    monkeypatch.setattr("gateway.access.open_streams.UNSURE_S", 0.2)
    token = await world.stream(issuer.token())
    other = await world.stream(_key(world, "acme"))
    issuer.may_respond.clear()
    table = ISSUER.format(url=issuer.url) + f'jwks_uri = "{issuer.url}/keys"\n'
    world.write(POLICY.replace('["*"]', '["chat"]') + table + "# end\n")
    world.store.revoke("app")
    assert isinstance(await other.ended(), Unauthenticated)
    assert isinstance(await token.ended(), GatewayError)
    assert not issuer.may_respond.is_set()


CERTIFICATE = """
[certificates."CN=batch"]
tenant = "acme"
roles = ["analyst"]
"""


async def test_a_certificate_that_is_no_longer_listed(world):
    world.write(POLICY + CERTIFICATE + "# end\n")
    world.access_control.refresh()
    stream = Stream(world, "", "chat")
    stream.context.headers.clear()
    stream.context.scope["tidegate.client_certificate"] = ("CN=batch",)
    await stream.begin()
    world.policy.write_text(POLICY + "# end\n")
    assert isinstance(await stream.ended(), Unauthenticated)


async def test_a_certificate_that_ends_while_its_connection_lasts(world):
    world.write(POLICY + CERTIFICATE + "# end\n")
    world.access_control.refresh()
    stream = Stream(world, "", "chat")
    stream.context.headers.clear()
    ends = time.time() + 1.5
    certificate = {
        "tidegate.client_certificate": ("CN=batch",),
        "tidegate.client_certificate_ends": ends,
    }
    stream.context.scope.update(certificate)
    await stream.begin()
    assert isinstance(await stream.ended(), Unauthenticated)
    with pytest.raises(Unauthenticated):
        await world.access_control.identify(stream.context)


LIMIT = """
[[limits]]
scope = "{scope}"
kind = "concurrency"
amount = {amount}
"""


def _limited(amount: float, scope: str = "tenant") -> str:
    return POLICY + LIMIT.format(scope=scope, amount=amount)


async def _stream_once_free(world: World, key: str) -> Stream:
    """Redis is told of a place that was left a moment later."""
    async with asyncio.timeout(HANG_S):
        while True:
            with contextlib.suppress(QuotaExceeded):
                return await world.stream(key)
            await asyncio.sleep(0.02)


@pytest.fixture(params=["memory", "workers", "redis"])
async def counted(request, tmp_path, monkeypatch):
    """Limits in memory, in memory with two workers, in Redis."""
    monkeypatch.setattr("gateway.access.control.STEADY_S", 0)
    server = RedisServer() if request.param == "redis" else None
    for module in ("connection", "store"):  # a busy machine must not look like an outage of Redis
        monkeypatch.setattr(f"gateway.limits.redis.{module}.TIMEOUT_S", 2.0)
    settings = {"redis_url": server.url} if server else {}
    workers = 2 if request.param == "workers" else 1
    world = World(tmp_path, workers=workers, **settings)
    world.policy.write_text(_limited(4))
    await world.open()
    yield world
    await world.close()
    if server:
        server.kill()


@pytest.mark.parametrize("scope", ["tenant", "key", "model"])
async def test_a_lowered_limit_ends_the_youngest(counted, scope):
    counted.write(_limited(4, scope))
    counted.access_control.refresh()
    key = _key(counted, "acme")
    streams = [await counted.stream(key) for _ in range(4)]
    with pytest.raises(QuotaExceeded):
        await counted.stream(key)
    counted.policy.write_text(_limited(2, scope))  # in place
    assert isinstance(await streams[3].ended(), QuotaExceeded)
    assert isinstance(await streams[2].ended(), QuotaExceeded)
    assert await streams[1].stays_open() and await streams[0].stays_open()
    with pytest.raises(QuotaExceeded):
        await counted.stream(key)
    await streams[0].leave()
    streams.append(await _stream_once_free(counted, key))
    for stream in (streams[1], streams[-1]):
        assert stream.error is None
        await stream.leave()
    two = [await _stream_once_free(counted, key) for _ in range(2)]
    for stream in two:
        await stream.leave()


async def test_a_limit_where_there_was_none(counted):
    counted.write(POLICY + "# end\n")
    counted.access_control.refresh()
    key = _key(counted, "acme")
    streams = [await counted.stream(key) for _ in range(3)]
    counted.policy.write_text(_limited(2) + "# end\n")
    assert isinstance(await streams[2].ended(), QuotaExceeded)
    assert await streams[1].stays_open()
    with pytest.raises(QuotaExceeded):
        await counted.stream(key)
    for stream in streams[:2]:
        await stream.leave()


async def test_a_raised_limit_ends_no_stream_and_counts_the_open_ones(counted):
    key = _key(counted, "acme")
    streams = [await counted.stream(key) for _ in range(4)]
    counted.policy.write_text(_limited(5) + "# end\n")
    await counted.checked()
    streams.append(await counted.stream(key))
    with pytest.raises(QuotaExceeded):
        await counted.stream(key)
    for stream in streams:
        assert stream.error is None
        await stream.leave()


async def test_many_streams_are_verified_again_only_after_a_change(world, monkeypatch):
    key = _key(world, "acme")
    streams = [await world.stream(key) for _ in range(300)]
    await world.checked()
    verified = []
    identify = world.access_control._streams._identify

    async def counting(context):
        verified.append(context)
        return await identify(context)

    monkeypatch.setattr(world.access_control._streams, "_identify", counting)
    await world.access_control.check_streams()
    assert verified == []
    world.store.revoke("app")
    await asyncio.wait([stream.task for stream in streams], timeout=HANG_S)
    assert all(isinstance(stream.error, Unauthenticated) for stream in streams)
    assert len(verified) >= 300

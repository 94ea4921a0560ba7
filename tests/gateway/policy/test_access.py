"""Who may do what with which model; anything else is denied, and looks as if it did not exist."""

import itertools

import pytest
from starlette.routing import Mount, Route

from gateway.errors import Forbidden, NotFound
from gateway.http.handler import OPEN, Endpoint, Policy, Undeclared, declared, needs, open_to_all
from gateway.models.catalogue import Catalogue
from gateway.policy.access import Access, tenants_without_fallback
from gateway.policy.gateway_toml import NO_FILE, Rules, parse_rules
from gateway.policy.principal import ACTIONS, ADMIN, USER, Grant, Principal
from tests.gateway.request_contexts import context_of
from tests.gateway.undeclared import undeclared

RULES = parse_rules(
    """
[tenants.acme]
models = ["text_*", "chat"]
[tenants.beta]
models = ["image_*"]
[tenants.empty]
models = []
[roles.reader]
actions = ["read"]
[roles.chatter]
actions = ["infer"]
models = ["chat"]
""",
    "gateway.toml",
)
MODELS = ("text_embedding", "text_embedding.v7", "chat", "image_classification", "chatter")


def _may(grant, rules=RULES):
    access, principal = Access(rules), Principal("id", "name", grant)
    return {
        (action, model)
        for action, model in itertools.product(ACTIONS, MODELS)
        if access.allowed(principal, action, model)
    }


def _all(actions, models):
    return set(itertools.product(actions, models))


ACME = ("text_embedding", "text_embedding.v7", "chat")


@pytest.mark.parametrize(
    ("grant", "allowed"),
    [
        (Grant("acme"), _all(["read", "infer"], ACME)),
        (Grant("beta"), _all(["read", "infer"], ["image_classification"])),
        (Grant("acme", ("reader",)), _all(["read"], ACME)),
        (Grant("acme", ("chatter",)), {("infer", "chat")}),
        (Grant("acme", ("reader", "chatter")), _all(["read"], ACME) | {("infer", "chat")}),
        (Grant("beta", ("chatter",)), set()),
        (Grant("acme", ("user",), ("text_embedding",)), _all(["read", "infer"], MODELS[:1])),
        (Grant("acme", ("user",), ("image_*",)), set()),
        (Grant("acme", ("user",), ()), set()),
        (Grant("acme", ("user",), ("*",), ("infer",)), _all(["infer"], ACME)),
        (Grant("acme", ("user",), ("*",), ("admin",)), set()),
        (Grant("acme", ()), set()),
        (Grant("acme", ("nobody",)), set()),
        (Grant("empty"), set()),
        (Grant("nowhere"), set()),
        (USER, set()),  # [tenants] are listed, and 'default' is not one of them
        (ADMIN, _all(ACTIONS, MODELS)),
        (ADMIN._replace(models=("chat",), scopes=("read",)), {("read", "chat")}),
    ],
)
def test_a_caller_may_do_what_role_tenant_and_key_all_allow(grant, allowed):
    assert _may(grant) == allowed


def test_without_a_file_a_key_may_do_everything_that_it_was_not_itself_denied():
    assert _may(USER, NO_FILE) == _all(ACTIONS, MODELS)
    assert _may(Grant("acme"), NO_FILE) == _all(ACTIONS, MODELS)
    assert _may(ADMIN, NO_FILE) == _all(ACTIONS, MODELS)
    narrow = Grant("acme", ("user",), ("text_*",), ("infer",))
    assert _may(narrow, NO_FILE) == _all(["infer"], MODELS[:2])
    assert _may(Grant("acme", ("typo",)), NO_FILE) == set()


def test_an_empty_file_gives_users_no_admin():
    assert _may(USER, Rules()) == _all(["read", "infer"], MODELS)


def test_globs_are_of_whole_names_and_of_letters_as_written():
    for name in ("xtext_a", "TEXT_a", "chat\n", "chats", "a/../text_a", ""):
        principal = Principal("id", "name", Grant("acme", ("user",), ("text_?", "chat")))
        assert Access(RULES).allowed(principal, "infer", name) is (name == "")


def test_what_is_not_yours_reads_like_what_is_not_there():
    access, principal = Access(RULES), Principal("id", "name", Grant("beta"))
    with pytest.raises(NotFound) as foreign:
        access.check(principal, "infer", "text_embedding")
    with pytest.raises(NotFound) as absent:
        Catalogue().model("text_embedding")
    assert foreign.value.message == absent.value.message


def test_what_you_see_but_may_not_do_is_forbidden():
    access, principal = Access(RULES), Principal("id", "name", Grant("acme", ("reader",)))
    access.check(principal, "read", "chat")
    with pytest.raises(Forbidden, match="may not infer with 'chat'"):
        access.check(principal, "infer", "chat")
    with pytest.raises(Forbidden, match="may not admin"):
        access.check(principal, "admin")


def test_decisions_are_remembered_within_bounds(monkeypatch):
    monkeypatch.setattr("gateway.policy.access.MAX_DECISIONS", 100)
    access, principal = Access(RULES), Principal("id", "name", Grant("acme"))
    for n in range(110):
        access.allowed(principal, "infer", f"text_{n}")
    assert len(access._decisions) <= 100
    access.allowed(principal, "infer", "x" * 5000)
    assert max(len(model) for _, _, model in access._decisions) < 5000
    assert access.allowed(principal, "infer", "text_0")


def test_limits_count_whom_they_name():
    head = '[[limits]]\nscope = "key"\nkind = "requests"\n'
    rules = parse_rules(
        f'{head}amount = 1\n{head}amount = 2\ntenants = ["a*"]\nmodels = ["chat"]\n'
        f'{head}amount = 3\nprincipals = ["jwt:*"]\n',
        "gateway.toml",
    )
    access = Access(rules)

    def amounts(name, tenant, model):
        limits = access.limits(Principal(name, "n", Grant(tenant)), model)
        assert access.limits(Principal(name, "n", Grant(tenant)), model) is limits
        return [limit.amount for limit in limits]

    assert amounts("k1", "acme", "chat") == [1, 2]
    assert amounts("k1", "acme", "text_embedding") == [1]
    assert amounts("jwt:corp:ann", "beta", "chat") == [1, 3]


class _Reply:
    async def send(self, send):
        return None


class _Api:
    @needs("infer", model="model")
    async def infer(self, context):
        return _Reply()

    @needs("admin")
    async def reload(self, context):
        return _Reply()

    @open_to_all
    async def health(self, context):
        return _Reply()

    async def forgotten(self, context):
        return None


class _Endpoint:
    """Holds the handler, as in gateway.http.handler."""

    def __init__(self, handler):
        self.handler = handler

    async def __call__(self, scope, receive, send):
        return None


def test_a_route_that_declares_nothing_is_found():
    api = _Api()

    @open_to_all
    def healthz(request):
        return None

    routes = [
        Route("/v2/models/{model}/infer", _Endpoint(api.infer)),
        Route("/reload", _Endpoint(api.reload)),
        Route("/healthz", healthz),
        Route("/docs", lambda request: None),
        Mount("/static", routes=[]),
        Route("/forgotten", _Endpoint(api.forgotten)),
        Route("/forgotten-too", lambda request: None),
    ]
    paths = undeclared(routes, {"/docs": OPEN})
    assert paths == ["/static", "/forgotten", "/forgotten-too"]
    assert declared(api.infer) == Policy("infer", "model")
    with pytest.raises(Undeclared, match="forgotten declares no policy"):
        declared(api.forgotten)


async def test_a_declared_policy_is_kept():
    api, access = _Api(), Access(RULES)
    acme, reader = (Principal("id", "n", Grant("acme", (r,))) for r in ("user", "reader"))

    async def call(handler, principal, **params):
        context = context_of({"path": "/", "headers": []}, None, access=access)
        context.principal = principal
        scope = {"context": context, "path_params": params}
        await Endpoint(handler)(scope, None, None)

    await call(api.infer, acme, model="chat")
    with pytest.raises(NotFound):
        await call(api.infer, acme, model="image_classification")
    with pytest.raises(Forbidden):
        await call(api.infer, reader, model="chat")
    with pytest.raises(Forbidden):
        await call(api.reload, acme)
    await call(api.reload, Principal("id", "n", ADMIN))
    await call(api.health, reader)
    await call(api.health, None)


def test_tenants_that_a_fallback_does_not_answer_for_are_named():
    rules = parse_rules(
        """
        [tenants.both]
        models = ["text_*"]
        [tenants.one]
        models = ["text_embedding"]
        [tenants.other]
        models = ["image_*"]
        [pipelines.text_embedding]
        fallback = "text_small"
        [pipelines.image_classification]
        fallback = "image_small"
        """,
        "gateway.toml",
    )
    assert tenants_without_fallback(rules) == {"text_embedding": ["one"]}
    assert tenants_without_fallback(parse_rules("", "gateway.toml")) == {}

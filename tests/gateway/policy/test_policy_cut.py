"""A gateway.toml that is being written, or was cut off, never grants more than the complete one."""

import contextlib
import os

import pytest

from gateway.policy import reload
from gateway.policy.access import Access
from gateway.policy.gateway_toml import NO_FILE, PolicyError, parse_rules
from gateway.policy.principal import ACTIONS, Grant, Principal
from gateway.policy.reload import PolicyFile
from tests.gateway.policy.test_policy import WHOLE

ROLES_FIRST = """\
# What there is.

[roles.user]
actions = ["read"]
models = ["text_*"]

[roles.reader]
actions = ["read"]
models = ["chat"]

[[limits]]
scope = "key"
kind = "requests"
amount = 60
window_s = 3600

[[limits]]
scope = "tenant"
kind = "concurrency"
amount = 10
models = ["chat"]

[tenants.a]
models = ["text_*", "chat"]

[tenants.b]
models = ["image_*"]
"""
NO_TENANTS = """\
[roles.user]
actions = ["read", "infer"]
models = ["text_*"]

[certificates."CN=batch"]
tenant = "default"
roles = ["user"]
models = ["text_*"]
scopes = ["read"]

[proxy]
trusted = ["10.0.0.0/8"]
certificate_header = "x-client"

[issuers.corp]
issuer = "https://login.example.com/"
audience = ["tidegate"]
tenant = "default"
default_roles = ["user"]
models_claim = "models"
types = ["at+jwt"]
leeway_s = 10

[[limits]]
scope = "tenant"
kind = "tokens"
amount = 100
window_s = 60
burst = 10
"""
LIMITS_LAST = 'replicas = ["127.0.0.1:8001"]\n' + NO_TENANTS
FILES = [WHOLE, ROLES_FIRST, NO_TENANTS, LIMITS_LAST]
TENANTS = ("default", "acme", "other.org", "a", "b", "nobody")
ROLES = ("user", "reader", "analyst", "admin", "nobody")
MODELS = ("text_a", "chat", "image_a", "x")
CALLERS = [
    Principal(f"{tenant}-{role}", "", Grant(tenant, (role,)))
    for tenant in TENANTS
    for role in ROLES
]


def _rights(access: Access) -> set[tuple[str, str, str]]:
    return {
        (caller.id, action, model)
        for caller in CALLERS
        for action in ACTIONS
        for model in MODELS
        if access.allowed(caller, action, model)
    }


def _more(current, complete) -> list[str]:
    """What ``current`` grants and the ``complete`` policy does not."""
    excess = [f"right {right}" for right in _rights(current.access) - _rights(complete.access)]
    for caller in CALLERS:
        for model in MODELS:
            limits = current.access.limits(caller, model)
            missing = [
                limit for limit in complete.access.limits(caller, model) if limit not in limits
            ]
            excess += [f"no {limit.name} for {caller.id}" for limit in missing]
    for name, issuer in current.rules.issuers.items():
        bound = complete.rules.issuers.get(name)
        excess += [] if bound and _within(issuer, bound) else [f"issuer {name}"]
    for name, holder in current.rules.certificates.items():
        bound = complete.rules.certificates.get(name)
        within = bound and bound.tenant == holder.tenant
        for field in ("roles", "models", "scopes"):
            within = within and set(getattr(holder, field)) <= set(getattr(bound, field))
        excess += [] if within else [f"certificate {name}"]
    if current.rules.proxy not in (None, complete.rules.proxy):
        excess.append("proxy")
    return excess


def _within(issuer, bound) -> bool:
    """Whether no token gets in, or gets more, by ``issuer`` than by ``bound``."""
    for field in ("issuer", "jwks_uri", "tenant", "tenant_claim", "roles_claim"):
        if getattr(issuer, field) != getattr(bound, field):
            return False
    for field in ("audience", "algorithms", "types", "default_roles"):
        if not set(getattr(issuer, field)) <= set(getattr(bound, field)):
            return False
    roles = issuer.roles.items() <= bound.roles.items()
    same_claim = bound.models_claim in (None, issuer.models_claim)
    return roles and same_claim and issuer.leeway_s <= bound.leeway_s


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def policy(tmp_path, clock):
    return PolicyFile(tmp_path / "gateway.toml", clock)


def _begin(policy, path, text):
    path.write_text(text)
    with contextlib.suppress(PolicyError):
        policy.refresh()


@pytest.mark.parametrize("renamed", [False, True])
@pytest.mark.parametrize("number", range(len(FILES)))
def test_a_cut_at_any_byte_grants_nothing_more(policy, clock, tmp_path, number, renamed):
    """However long it stays cut, and even if it was renamed into place."""
    path, text = tmp_path / "gateway.toml", FILES[number]
    _begin(policy, path, text)
    complete = policy.current
    for end in range(0, len(text), 7 if renamed else 1):
        if renamed:
            (tmp_path / "new").write_text(text[:end])
            os.utime(tmp_path / "new", ns=(end, end))
            (tmp_path / "new").replace(path)
        else:
            path.write_text(text[:end])
            os.utime(path, ns=(end, end))
        for _ in range(2):
            with contextlib.suppress(PolicyError):
                policy.refresh()
            assert _more(policy.current, complete) == [], text[:end]
            clock.now += 100
    path.write_text(text)
    policy.refresh()
    assert policy.current.rules == complete.rules


@pytest.mark.parametrize("before", range(len(FILES)))
@pytest.mark.parametrize("after", range(len(FILES)))
def test_a_new_file_written_slowly_grants_nothing_more_meanwhile(
    policy, clock, tmp_path, before, after
):
    """At every byte at which it could stop for less than ``SETTLE_S``."""
    path, text = tmp_path / "gateway.toml", FILES[after]
    _begin(policy, path, FILES[before])
    complete = policy.current
    for end in range(0, len(text), 11):
        path.write_text(text[:end])
        os.utime(path, ns=(end, end))
        with contextlib.suppress(PolicyError):
            policy.refresh()
        clock.now += reload.SETTLE_S * 0.9
        with contextlib.suppress(PolicyError):
            policy.refresh()
        assert _more(policy.current, complete) == [], text[:end]


def test_two_halves_as_in_the_report(policy, clock, tmp_path):
    """No file before; comments and roles first, the tenants 0.8 s later."""
    path = tmp_path / "gateway.toml"
    policy.refresh()
    first, second = ROLES_FIRST.split("[tenants.a]")
    path.write_text(first)
    policy.refresh()
    clock.now += 0.8
    assert not policy.refresh()
    path.write_text(first + "[tenants.a]" + second)
    policy.refresh()
    complete = Access(parse_rules(ROLES_FIRST, ""))
    assert _rights(policy.current.access) <= _rights(Access(NO_FILE))
    clock.now += reload.SETTLE_S
    policy.refresh()
    assert _rights(policy.current.access) == _rights(complete)


def test_tenants_never_go(policy, clock, tmp_path):
    path = tmp_path / "gateway.toml"
    _begin(policy, path, WHOLE)
    complete = policy.current
    (tmp_path / "new").write_text('[roles.user]\nactions = ["read", "infer"]\n')
    (tmp_path / "new").replace(path)
    with pytest.raises(PolicyError, match="has no tenants any more"):
        policy.refresh()
    clock.now += 1000
    assert not policy.refresh()
    assert policy.current is complete


def test_what_is_taken_away_holds_at_once_and_what_is_given_once_the_file_is_steady(
    policy, clock, tmp_path
):
    path = tmp_path / "gateway.toml"
    _begin(policy, path, '[tenants.a]\nmodels = ["chat"]\n')
    user = Principal("k", "", Grant("a"))
    path.write_text('[tenants.a]\nmodels = ["text_*"]\n')
    assert policy.refresh()
    assert not policy.current.access.allowed(user, "infer", "chat")
    assert not policy.current.access.allowed(user, "infer", "text_a")
    clock.now += reload.SETTLE_S - 0.1
    assert not policy.refresh()
    clock.now += 0.2
    assert policy.refresh()
    assert policy.current.access.allowed(user, "infer", "text_a")
    assert not policy.refresh()


def test_limits_that_go_are_waited_for_longer(policy, clock, tmp_path):
    path = tmp_path / "gateway.toml"
    _begin(policy, path, ROLES_FIRST)
    head, *_, tail = ROLES_FIRST.split("[[limits]]")
    path.write_text(head + tail[tail.index("[tenants.a]") :])
    policy.refresh()
    user = Principal("k", "", Grant("a"))
    for _ in range(4):
        assert len(policy.current.access.limits(user, "chat")) == 2
        clock.now += reload.SETTLE_S
        policy.refresh()
    clock.now += reload.LOST_S
    assert policy.refresh()
    assert policy.current.access.limits(user, "chat") == ()


@pytest.mark.parametrize("how", ["renamed", "marked"])
def test_a_file_that_is_known_to_be_whole_holds_at_once(policy, tmp_path, how):
    path, user = tmp_path / "gateway.toml", Principal("k", "", Grant("a"))
    _begin(policy, path, ROLES_FIRST)
    text = '[tenants.a]\nmodels = ["*"]\n' + ("# end\n" if how == "marked" else "")
    if how == "marked":
        path.write_text(text)
    else:
        (tmp_path / "new").write_text(text)
        os.utime(tmp_path / "new", ns=(1, 1))
        (tmp_path / "new").replace(path)
    assert policy.refresh()
    assert policy.current.access.allowed(user, "infer", "x")
    assert policy.current.access.limits(user, "chat") == ()


def test_a_file_without_its_mark_is_refused(policy, clock, tmp_path):
    path = tmp_path / "gateway.toml"
    _begin(policy, path, ROLES_FIRST + "\n  # end  ")
    complete = policy.current
    path.write_text('# another\n[tenants.a]\nmodels = ["*"]\n')
    with pytest.raises(PolicyError, match="does not end with the line '# end'"):
        policy.refresh()
    clock.now += 1000
    assert not policy.refresh()
    assert policy.current is complete


def test_a_beginning_takes_away_but_gives_nothing_and_a_comment_says_that_it_is_meant(
    policy, clock, tmp_path
):
    """As when the last tenant, or the last limit, is deleted in an editor."""
    path = tmp_path / "gateway.toml"
    a, b = Principal("k", "", Grant("a")), Principal("k", "", Grant("b"))
    _begin(policy, path, '[tenants.a]\nmodels = ["*"]\n[tenants.b]\nmodels = ["*"]\n')
    path.write_text('[tenants.a]\nmodels = ["*"]\n')
    assert policy.refresh()  # no right is added
    assert not policy.current.access.allowed(b, "infer", "x")
    limited = '[tenants.a]\nmodels = ["*"]\n[[limits]]\nscope="key"\nkind="requests"\namount=1\n'
    path.write_text(limited)
    policy.refresh()
    path.write_text('[tenants.a]\nmodels = ["*"]\n')
    with pytest.raises(PolicyError, match="only the beginning of the previous file"):
        policy.refresh()
    clock.now += 1000
    policy.refresh()
    assert policy.current.access.limits(a, "x")
    path.write_text('[tenants.a]\nmodels = ["*"]\n# no limits\n')
    policy.refresh()
    clock.now += reload.LOST_S
    policy.refresh()
    assert policy.current.access.limits(a, "x") == ()

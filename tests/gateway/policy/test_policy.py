"""gateway.toml: validated as a whole, refused with the line that is wrong, swapped at runtime."""

import threading

import pytest

from gateway.identity.keys import parse_records
from gateway.policy.gateway_toml import PolicyError, Rules, parse_rules
from gateway.policy.reload import PolicyFile
from gateway.policy.toml_lines import line_of

WHOLE = """\
# A gateway with everything.
replicas = [
  "127.0.0.1:8001",   # here
  "10.0.0.2:8001",
]

[tenants.acme]
models = ["text_*", "chat"]

[tenants."other.org"]
models = ["*"]

[roles.analyst]
actions = ["read", "infer"]
models = ["text_*"]

[[limits]]
scope = "tenant"
kind = "requests"
amount = 50
burst = 100

[[limits]]
scope = "key"
kind = "tokens"
amount = 6e4
window_s = 60
models = ["chat"]

[issuers.corp]
issuer = "https://login.example.com/"
audience = ["tidegate"]
algorithms = ["RS256", "ES256"]
tenant_claim = "org"
roles_claim = "groups"
roles = { ml-team = "analyst", "ops@acme" = "admin" }

[certificates."CN=batch,O=Acme"]
tenant = "acme"
roles = ["analyst"]
scopes = ["infer"]

[proxy]
trusted = ["127.0.0.1", "10.0.0.0/8"]

[routes.text_embedding]
"text_embedding.v7" = 10

[audit]
record = "denied"
"""


def test_everything_is_read():
    rules = parse_rules(WHOLE, "gateway.toml")
    assert rules.replicas == ["127.0.0.1:8001", "10.0.0.2:8001"]
    assert rules.limits[1].amount == 60000
    assert rules.limits[1].burst == 0
    assert rules.issuers["corp"].roles == {"ml-team": "analyst", "ops@acme": "admin"}
    assert rules.routes["text_embedding"].weights == {"text_embedding.v7": 10}
    assert rules.proxy is not None
    assert rules.audit.record == "denied"


def test_an_empty_file_is_the_default():
    assert parse_rules("", "gateway.toml") == Rules()


@pytest.mark.parametrize(
    ("before", "after", "line", "words"),
    [
        ('"10.0.0.2:8001"', '"10.0.0.2"', 2, "replicas.1"),
        ('[tenants.acme]\nmodels = ["text_*", "chat"]', "[tenants.acme]", 7, "models: Field requ"),
        ('["text_*", "chat"]', '["text_*", 5]', 8, "tenants.acme.models.1"),
        ('["text_*", "chat"]', '["../x y\\n"]', 8, "tenants.acme.models.0"),
        ('[tenants."other.org"]', '[tenants."other org"]', 10, "should match pattern"),
        ('actions = ["read", "infer"]', 'actions = ["write"]', 14, "'read', 'infer' or 'admin'"),
        ('actions = ["read", "infer"]', "actions = []", 14, "at least 1 item"),
        ("[roles.analyst]", "[roles.admin]", 13, "roles.admin: is built in"),
        ("amount = 50", "amount = -1", 20, "limits.0.amount: Input should be greater than 0"),
        ("amount = 50", "amount = inf", 20, "finite number"),
        ("amount = 50", "amount = true", 20, "valid number"),
        ("amount = 6e4\n", "", 23, "limits.1.amount: Field required"),
        ('kind = "tokens"', 'kind = "token"', 25, "'requests', 'concurrency' or 'tokens'"),
        ("burst = 100", "burst = 0.5", 17, "set burst to 1 or more"),
        ("burst = 100", "burts = 100", 21, "limits.0.burts: there is no such key: docs/policy.md"),
        ("https://login", "http://login", 31, "must be an https:// URL"),
        ('"RS256", "ES256"', '"HS256"', 33, "issuers.corp.algorithms.0"),
        ('audience = ["tidegate"]', "audience = []", 32, "at least 1 item"),
        ('tenant_claim = "org"\n', "", 30, "needs either tenant or tenant_claim"),
        ('tenant_claim = "org"', 'tenant = "nobody"', 34, "there is no [tenants.nobody]"),
        ('= "analyst", "ops', '= "analist", "ops', 36, "there is no [roles.analist]"),
        ('tenant = "acme"', 'tenant = "acne"', 38, "there is no [tenants.acne]"),
        ('"10.0.0.0/8"', '"10.0.0.1/8"', 44, "proxy.trusted.1"),
        ("v7", "v 7", 47, "should match pattern"),
        ('"text_embedding.v7"', '"text_other.v7"', 47, "must be called text_embedding.SOMETHING"),
        ('v7" = 10', 'v7" = 101', 47, "less than or equal to 100"),
        ('v7" = 10', 'v7" = 60\n"text_embedding.v8" = 50', 46, "sum must not exceed 100"),
        ("[audit]", "[audit", 49, "Expected"),
        ('"denied"', '"denied', 50, "Illegal character"),
        ("[audit]", "[roles.analyst]", 49, "twice"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(before, after, line, words):
    assert WHOLE.count(before) == 1
    with pytest.raises(PolicyError) as refused:
        parse_rules(WHOLE.replace(before, after), "gateway.toml")
    message = str(refused.value)
    assert message.startswith(f"gateway.toml line {line}: ")
    assert words in message
    assert "\n" not in message


def test_fallbacks_are_read_and_do_not_go_in_circles():
    text = "[pipelines.a]\nfallback = 'b'\n"
    assert parse_rules(text, "gateway.toml").pipelines["a"].fallback == "b"
    with pytest.raises(PolicyError, match=r"line 2: pipelines.a.fallback: is the pipeline itself"):
        parse_rules(text.replace("'b'", "'a'"), "gateway.toml")
    with pytest.raises(PolicyError, match=r"line 2: .*\[pipelines.b\] has a fallback of its own"):
        parse_rules(text + "[pipelines.b]\nfallback = 'a'\n", "gateway.toml")
    with pytest.raises(PolicyError, match=r"line 3: pipelines.a.fallbak: there is no such key"):
        parse_rules(text + "fallbak = 'c'\n", "gateway.toml")


def test_two_issuers_may_not_be_the_same():
    second = WHOLE.partition("[issuers.corp]")[2].partition("[certificates")[0]
    with pytest.raises(
        PolicyError, match=r"line 53: issuers.duplicate.issuer: is \[issuers.corp\]"
    ):
        parse_rules(WHOLE + "\n[issuers.duplicate]" + second, "gateway.toml")


def test_a_claimed_tenant_must_be_listed():
    text = WHOLE.replace("[tenants.acme]", "[roles.a]\nactions=['read']")
    text = text.replace('[tenants."other.org"]', "[roles.b]\nactions=['read']")
    with pytest.raises(PolicyError, match="tenant_claim: needs a"):
        parse_rules(text.replace('tenant = "acme"\n', ""), "gateway.toml")


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("a", "b"), 1),
        (("t", 0, "x"), 3),
        (("t", 1, "x"), 7),
        (("t", 1, "inner", "z"), 10),
        (("t", 1, "many", 1), 11),
        (("q", "a.b", "c"), 16),
        (("q", "a.b", "text"), 17),
        (("q", "nowhere"), 15),
        ((), 1),
    ],
)
def test_lines_of_every_way_to_write_a_key(path, line):
    text = """\
a.b = 1
[[t]]
x = 1
# [[t]]
  [[t]]   # two

x = [ # one
1]
[t.inner]
z = 2
[other]
y = 3
[t2]
w = 4
[q]
"a.b".c = 5
"a.b".text = '''
[not.a.table]
'''
"""
    if path == ("t", 1, "many", 1):
        text, line = "[[t]]\n[[t]]\n  many = [\n 1,\n 2]\n", 3
    assert line_of(text, path) == line


@pytest.mark.parametrize(
    "line",
    ["replicas = " + "[" * 3000 + "]" * 3000, "audit = " + "9" * 5000, "routes.a.b = " + "9" * 400],
)
def test_what_the_parser_itself_cannot_take_is_a_fault_with_a_line(line):
    with pytest.raises(PolicyError, match=r"^gateway.toml line 3: .{1,200}$"):
        parse_rules(f"# one\n# two\n{line}\n{WHOLE}", "gateway.toml")


def test_a_byte_order_mark_is_no_fault():
    assert parse_rules("\ufeff" + WHOLE, "gateway.toml") == parse_rules(WHOLE, "gateway.toml")
    assert parse_records("\ufeff[keys]\n") == {}
    with pytest.raises(ValueError, match="nested too deep"):
        parse_records("a = " + "[" * 3000)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "gateway.toml"


def test_a_change_is_swapped_whole_and_has_a_version(path):
    policy = PolicyFile(path)
    assert not policy.refresh()
    assert policy.current.version == "default"
    path.write_text(WHOLE)
    before = policy.current
    assert policy.refresh()
    assert not policy.refresh()
    first = policy.current
    assert first is not before
    assert len(first.version) == 12
    path.write_text(WHOLE + "# changed\n")
    assert policy.refresh()
    assert policy.current.version != first.version
    assert first.rules.replicas == policy.current.rules.replicas


@pytest.mark.parametrize("wrong", [b"[roles.admin]\nactions=['read']", b"[", b"a = '\xff'"])
def test_a_file_that_is_wrong_changes_nothing_and_is_reported_once(path, wrong):
    policy = PolicyFile(path)
    path.write_text(WHOLE)
    policy.refresh()
    before = policy.current
    path.write_bytes(wrong)
    with pytest.raises(PolicyError, match=f"{path} line 1: "):
        policy.refresh()
    assert not policy.refresh()
    assert policy.current is before
    path.write_text(WHOLE + "\n")
    assert policy.refresh()


@pytest.mark.parametrize("text", ["", " \n"])
def test_a_file_that_is_being_written_does_not_open_the_apis(path, text):
    """An editor empties a file before it writes it: without tenants every key may do everything."""
    policy = PolicyFile(path)
    path.write_text(WHOLE)
    policy.refresh()
    before = policy.current
    path.write_text(text)
    with pytest.raises(PolicyError, match="is empty: write the rules"):
        policy.refresh()
    assert policy.current is before
    path.write_text(WHOLE + "\n")
    assert policy.refresh()


def test_a_file_that_disappears_does_not_open_the_apis(path):
    policy = PolicyFile(path)
    path.write_text(WHOLE)
    policy.refresh()
    before = policy.current
    path.unlink()
    with pytest.raises(PolicyError, match="is missing"):
        policy.refresh()
    assert not policy.refresh()
    assert policy.current is before


def test_readers_never_see_half_of_a_change(path):
    """Sixty swaps under a reader: rules, access and version always belong together."""
    texts = [f'[tenants.t{n}]\nmodels = ["m{n}"]\n' for n in range(2)]
    policy = PolicyFile(path)
    path.write_text(texts[0])
    policy.refresh()
    seen, stop = set(), threading.Event()

    def read():
        while not stop.is_set():
            current = policy.current
            seen.add((current.version, tuple(current.rules.tenants)))

    reader = threading.Thread(target=read)
    reader.start()
    for n in range(60):
        temporary = path.with_suffix(".new")
        temporary.write_text(texts[n % 2])
        temporary.replace(path)
        policy.refresh()
    stop.set()
    reader.join()
    assert len(seen) == 2

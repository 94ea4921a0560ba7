"""The verdict on a canary: how often it is wrong if it is asked after every few requests, what it
needs to decide, and that nothing is promoted without evidence."""

import json
import os
import subprocess
import sys

import httpx
import numpy as np
import pytest

from gateway.policy.principal import ADMIN
from serving.errors import ServingError
from serving.triton.ports import free_ports
from tests.gateway.fake_llm import FakeLlm, served_llm, wait_for
from tests.gateway.fake_triton import public
from tests.gateway.settled import write_settled
from tests.running import ROOT
from tidegate.app.canary_verdict import (
    Arm,
    arms,
    interval,
    more_requests,
    probe_of,
    routed_canary,
    uncomparable,
    verdict,
    weight_of,
)
from tidegate.app.key_store import KeyStore
from tidegate.app.top import Look
from tidegate.commands.canary import _print_verdict

BOUNDS = (0.1, 0.25)
RUNS, REQUESTS, STEP = 200, 3000, 50
ALPHA = 0.05


def _arms(source, error_rate, mean_s, refused_rate):
    """What an arm has done after each ``STEP`` requests, up to ``REQUESTS``."""
    failed = source.random(REQUESTS) < error_rate
    refused = np.cumsum(source.random(REQUESTS) < refused_rate)
    took = source.exponential(mean_s, REQUESTS)
    errors = np.cumsum(failed)
    slower = {bound: np.cumsum(~failed & (took > bound)) for bound in BOUNDS}
    for at in range(STEP - 1, REQUESTS, STEP):
        counts = {bound: int(numbers[at]) for bound, numbers in slower.items()}
        yield Arm(at + 1 - int(errors[at]), int(errors[at]), counts, int(refused[at]))


def _pairs(seed, errors=(0.02, 0.02), means=(0.1, 0.1), refused=(0.02, 0.02)):
    sources = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    both = (_arms(sources[at], errors[at], means[at], refused[at]) for at in (0, 1))
    return zip(*both, strict=True)


def _first_decision(seed, **rates):
    """What is said first to somebody who asks every ``STEP`` requests until he is told."""
    for stable, canary in _pairs(seed, **rates):
        found = verdict(stable, canary, ALPHA, error_margin=0.04, latency_margin=0.2)
        if found.verdict != "undecided":
            return found.verdict
    return "undecided"


def _share(decision, **rates):
    return sum(_first_decision(seed, **rates) == decision for seed in range(RUNS)) / RUNS


def test_equal_versions_are_rolled_back_as_seldom_as_promised_however_often_one_asks():
    assert _share("roll back") <= ALPHA


def test_a_version_that_fails_more_than_the_margin_is_promoted_as_seldom():
    assert _share("promote", errors=(0.02, 0.065)) <= ALPHA


def test_a_version_that_is_slower_than_the_margin_is_promoted_as_seldom():
    # exp(-0.1 / mean): 37 % of one and 59 % of the other take over 0.1 s.
    assert _share("promote", means=(0.1, 0.19)) <= ALPHA


def test_a_version_that_is_refused_more_is_promoted_as_seldom_and_never_rolled_back():
    """Callers that give up are 4xx too. They may be the callers' own doing."""
    assert _share("promote", refused=(0.02, 0.065)) <= ALPHA
    assert {_first_decision(seed, refused=(0.02, 0.5)) for seed in range(20)} == {"undecided"}


def test_what_is_clear_is_found():
    assert _share("promote") > 0.9
    assert _share("roll back", errors=(0.02, 0.15)) > 0.9
    assert _share("roll back", means=(0.1, 0.3)) > 0.9


def test_a_test_for_a_fixed_number_would_be_wrong_far_more_often():
    """Why the test is sequential: equal arms, the usual z-test at 5 %, asked every 50 requests."""

    def says_worse(seed):
        for stable, canary in _pairs(seed):
            n = stable.requests
            pooled = (stable.errors + canary.errors) / (2 * n)
            deviation = (2 * pooled * (1 - pooled) / n) ** 0.5
            if deviation and (canary.errors - stable.errors) / n > 1.645 * deviation:
                return True
        return False

    assert sum(map(says_worse, range(RUNS))) / RUNS > 2 * ALPHA


def _even(requests, errors=0, slow=0):
    return Arm(requests - errors, errors, {0.1: slow})


@pytest.mark.parametrize(
    ("stable", "canary", "expected"),
    [
        (_even(0), _even(0), "undecided"),
        (_even(10**6), _even(99), "undecided"),
        (_even(99), _even(10**6), "undecided"),
        (_even(10**6), _even(99, errors=99), "undecided"),  # too few, however bad
        (_even(10**6), _even(100, errors=100), "roll back"),
        (_even(300), _even(300), "undecided"),
        (_even(10**4), _even(10**4), "promote"),
        (_even(10**4, slow=1000), _even(10**4, slow=9000), "roll back"),
        (_even(10**4, errors=9000), _even(10**4, errors=9000), "undecided"),
        (_even(10**4), Arm(10**4, 0, {0.1: 0}, refused=10**4), "undecided"),
        (_even(10**4), Arm(10**4, 10**4, {0.1: 0}, refused=10**4), "roll back"),
        (Arm(10**4, 0, {0.1: 0}, refused=100), Arm(10**4, 0, {0.1: 0}, refused=100), "promote"),
        # Worse without doubt, but by less than the margin of a percentage point.
        (_even(10**7, errors=10**4), _even(10**7, errors=2 * 10**4), "promote"),
    ],
)
def test_what_is_decided(stable, canary, expected):
    found = verdict(stable, canary)
    assert found.verdict == expected, found.reason
    assert found.reason


def test_an_interval_holds_the_share_and_shrinks():
    for hits, total in ((0, 100), (100, 100), (1, 3), (500, 1000)):
        low, high = interval(hits, total, 0.01)
        assert 0 <= low <= hits / total <= high <= 1
    assert interval(0, 0, 0.01) == (0.0, 1.0)
    widths = [high - low for low, high in (interval(n // 10, n, 0.01) for n in (10, 100, 1000))]
    assert widths == sorted(widths, reverse=True)


def _look(beside="1", weight="10", **counts):
    samples = {"tidegate_canary_seconds_count": [], "tidegate_canary_seconds_bucket": []}
    for name, (arm, status, count, quick) in counts.items():
        labels = {"canary": name.partition("__")[0].replace("_v", ".v"), "arm": arm}
        labels |= {"status": status, "beside": beside, "weight": weight}
        samples["tidegate_canary_seconds_count"].append((labels, count))
        for bound, value in (("0.1", quick), ("+Inf", count)):
            samples["tidegate_canary_seconds_bucket"].append(({**labels, "le": bound}, value))
    models = [{"name": "m", "versions": ["1"]}, {"name": "m.v2", "versions": ["2"]}]
    return Look(0.0, [], models, samples)


def test_the_arms_are_read_from_the_metrics():
    look = _look(
        m_v2__a=("canary", "2xx", 90, 80),
        m_v2__b=("canary", "5xx", 10, 0),
        m_v2__c=("canary", "4xx", 7, 7),  # the callers' own
        m_v2__d=("stable", "2xx", 900, 600),
        m_v1__e=("canary", "2xx", 3, 3),
        other_v9__f=("canary", "2xx", 5000, 5000),
    )
    policy = _policy(m={"per": "request", "m.v2": 10, "m.v3": 10})
    stable, own = arms("m", "m.v2", policy, look)
    assert own == Arm(90, 10, {0.1: 10}, refused=7)
    assert stable == Arm(900, 0, {0.1: 300})
    assert arms("m", "m.v3", policy, look) == (Arm(0, 0, {}), Arm(0, 0, {}))


@pytest.mark.parametrize("other", [{"weight": "50"}, {"beside": "7"}])
def test_what_was_counted_with_another_weight_or_version_beside_it_is_left_out(other):
    counts = {"m_v2__a": ("canary", "5xx", 900, 0), "m_v2__b": ("stable", "2xx", 900, 900)}
    policy = _policy(m={"per": "request", "m.v2": 10.0})
    assert arms("m", "m.v2", policy, _look(**counts))[1] == Arm(0, 900, {})
    assert arms("m", "m.v2", policy, _look(**counts, **other)) == (Arm(0, 0, {}), Arm(0, 0, {}))


def test_what_is_left_out_is_counted():
    counts = {"m_v2__a": ("canary", "5xx", 900, 0), "m_v2__b": ("stable", "2xx", 70, 70)}
    policy = _policy(m={"per": "request", "m.v2": 10.0})
    assert uncomparable("m", "m.v2", policy, _look(**counts)) == 0
    assert uncomparable("m", "m.v2", policy, _look(**counts, weight="50")) == 970
    assert weight_of("m", "m.v2", policy) == 10.0


def test_about_how_many_more_requests_decide():
    """As many more as it says do decide, and half of them do not."""
    stable, canary = _even(900, errors=9, slow=90), _even(300, errors=3, slow=30)
    more = more_requests(stable, canary)
    assert more and more > 1200
    factor = 1 + more / 1200
    assert verdict(stable.times(factor), canary.times(factor)).verdict == "promote"
    half = 1 + more / 2400
    assert verdict(stable.times(half), canary.times(half)).verdict == "undecided"


@pytest.mark.parametrize(
    ("stable", "canary"),
    [
        (_even(0), _even(0)),
        (_even(100), _even(0)),
        (_even(10**4), Arm(10**4, 0, {0.1: 0}, refused=10**4)),  # held back for ever
        (_even(10**4), _even(10**4)),  # decided
    ],
    ids=["nothing", "one version", "refused", "decided"],
)
def test_no_number_of_requests_is_named_where_none_decides(stable, canary):
    assert more_requests(stable, canary) is None


@pytest.mark.parametrize(
    ("weight", "left_out", "expected"),
    [
        (10.0, 0, []),
        (100.0, 0, ["with 100 % nothing is left to compare with: tidegate canary m --weight 50"]),
        (10.0, 970, ["970 requests are left out: the weight or the active version was another"]),
    ],
    ids=["plain", "all", "left out"],
)
def test_the_verdict_is_printed_as_a_table(capsys, weight, left_out, expected):
    more = more_requests(_even(300), _even(200))
    _print_verdict("m", "m.v2", weight, left_out, verdict(_even(300), _even(200)), more)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0].startswith("m.v2: undecided: it may be worse by ")
    assert lines[1] == f"weight {weight:g} %: 200 requests to the canary, 300 to the active version"
    assert lines[2].startswith(f"about {more:,} more requests decide")
    assert lines[3:-5] == expected
    assert lines[-5].startswith("shares of the requests")
    assert lines[-4].split() == ["check", "canary", "active", "margin", "verdict"]
    assert [line.split("%  ")[-1].strip() for line in lines[-3:]] == ["open", "open", "no worse"]


def _policy(**routes):
    return {"version": "1", "rules": {"routes": routes}}


def test_the_canary_is_the_one_that_is_routed_and_not_the_one_that_was_asked_most():
    routes = _policy(m={"per": "request", "m.v1": 0, "m.v3": 10}, other={"other.v9": 5})
    assert routed_canary("m", routes) == "m.v3"
    assert routed_canary("m", routes, 3) == "m.v3"
    with pytest.raises(ServingError, match=r"m\.v1 is not routed by this gateway, but m\.v3"):
        routed_canary("m", routes, 1)


def test_two_canaries_are_told_apart_by_their_version():
    routes = _policy(m={"per": "caller", "m.v2": 10, "m.v3": 10})
    with pytest.raises(ServingError, match=r"m\.v2, m\.v3 are routed: name one with --version"):
        routed_canary("m", routes)
    assert routed_canary("m", routes, 2) == "m.v2"


@pytest.mark.parametrize("routes", [{}, {"m": {"per": "caller", "m.v2": 0}}, {"n": {"n.v2": 10}}])
def test_without_a_canary_it_says_how_to_start_one(routes):
    with pytest.raises(ServingError, match="tidegate canary m --weight"):
        routed_canary("m", _policy(**routes))


def test_a_canary_whose_golden_answer_is_wrong_is_not_promoted():
    models = [{"name": "m.v2", "probe": "is late"}, {"name": "m", "probe": ""}]
    look = Look(0.0, [], models, {})
    assert probe_of("m.v2", look) == "is late"
    assert probe_of("m", look) == ""
    assert probe_of("m.v3", look) == "the gateway does not serve it"
    found = verdict(_even(10**4), _even(10**4), probe="is late")
    assert (found.verdict, found.reason) == ("undecided", "its golden answer is not right: is late")
    assert verdict(_even(10**4), _even(10**4, errors=9000), probe="is late").verdict == "roll back"


@pytest.mark.parametrize(
    ("url", "code", "said"),
    [
        ("http://127.0.0.1:1", 3, "no verdict: no gateway answers at http://127.0.0.1:1"),
        ("127.0.0.1:8082", 2, "is not a listener's URL: write http://HOST:PORT"),
    ],
)
def test_what_goes_wrong_is_never_taken_for_roll_back(url, code, said, monkeypatch):
    monkeypatch.setenv("TIDEGATE_API_KEY", "tg_any")
    command = [sys.executable, "-m", "tidegate", "canary", "p", "--verdict", "--url", url]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (run.returncode, run.stdout) == (code, "")
    assert said in run.stderr


def test_a_canary_that_fails_on_a_real_gateway_is_to_be_rolled_back(tmp_path):
    """It gives its golden answer, and fails a quarter of what clients send (with half of it, the
    circuit breaker would open now and then). With another weight, nothing is known of it."""
    (admin_port,) = free_ports(1)
    write_settled(tmp_path / "gateway.toml", '[routes.p]\nper = "request"\n"p.v2" = 50\n')
    _, operator = KeyStore(tmp_path / "keys.toml", tmp_path / "pepper").create("operator", ADMIN)
    fake = FakeLlm(public("p"), public("p.v2"))
    golden = np.float32(1).tobytes()

    async def answer(request):
        given = b"".join(request.raw_input_contents)
        if request.model_name == "p.v2" and given != golden and not fake.inferences % 4:
            raise RuntimeError
        return 0.0

    fake.answer = answer
    command = [sys.executable, "-m", "tidegate", "canary", "p", "--verdict", "--json"]
    command += ["--url", f"http://127.0.0.1:{admin_port}"]
    environment = {**os.environ, "TIDEGATE_API_KEY": operator, "PYTHONPATH": str(ROOT)}
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [2]}]}
    with served_llm(tmp_path, fake, {"admin_port": admin_port}) as served:
        headers = {"Authorization": f"Bearer {operator}"}
        with httpx.Client(base_url=served.url, headers=headers, timeout=60) as client:

            def ask() -> bool:
                """Whether the canary takes part: only once its golden answer is known."""
                return client.post("/v2/models/p/infer", json=body).status_code == 502

            wait_for(ask)
            for _ in range(600):
                ask()
        run = subprocess.run(command, capture_output=True, text=True, env=environment)
        changed = '[routes.p]\nper = "request"\n"p.v2" = 40\n'
        (tmp_path / "gateway.toml").write_text(changed)
        admin = f"http://127.0.0.1:{admin_port}/admin/policy"
        wait_for(lambda: '"p.v2":40' in httpx.get(admin, headers=headers).text)
        afterwards = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert afterwards.returncode == 3, afterwards.stdout
    fresh = json.loads(afterwards.stdout)
    assert (fresh["canary_requests"], fresh["stable_requests"]) == (0, 0)
    document = json.loads(run.stdout)
    assert (document["canary"], document["verdict"]) == ("p.v2", "roll back"), run.stdout
    assert run.returncode == 1
    assert document["canary_requests"] > 100 and document["stable_requests"] > 100

"""The limit headers, in the format of the IETF's draft and of OpenAI's clients."""

import pytest

from gateway.limits.headers import duration, limit_headers
from gateway.limits.limit import Outcome, Subject, checks_of
from tests.gateway.limits.made import limit_of

LIMITS = [
    limit_of("key", "requests", 10),
    limit_of("tenant", "requests", 600, 60, 1200),
    limit_of("key", "concurrency", 4),
    limit_of("model", "tokens", 60000, 60),
]
CHECKS = checks_of(LIMITS, Subject("acme", "k1", "chat"), tokens=100)


def test_of_an_admission():
    headers = dict(limit_headers(CHECKS, Outcome(True, [1, 1, 1, 100])))
    assert headers == {
        b"ratelimit-policy": b'"key-requests-1s";q=10;w=1, "tenant-requests-60s";q=1200;w=120, '
        b'"key-concurrency";q=4;qu="concurrent-requests", '
        b'"model-tokens-60s";q=60000;w=60;qu="tokens"',
        b"ratelimit": b'"key-requests-1s";r=9;t=1, "tenant-requests-60s";r=1199;t=1, '
        b'"key-concurrency";r=3, "model-tokens-60s";r=59900;t=1',
        b"x-ratelimit-limit-requests": b"10",
        b"x-ratelimit-remaining-requests": b"9",
        b"x-ratelimit-reset-requests": b"100ms",
        b"x-ratelimit-limit-tokens": b"60000",
        b"x-ratelimit-remaining-tokens": b"59900",
        b"x-ratelimit-reset-tokens": b"100ms",
    }


def test_a_debt_reads_as_nothing_left():
    headers = dict(limit_headers(CHECKS, Outcome(False, [10, 0, 5, 61000])))
    assert headers[b"ratelimit"].endswith(b'"key-concurrency";r=0, "model-tokens-60s";r=0;t=61')


def test_without_limits_there_are_none():
    assert limit_headers([], Outcome(True, [])) == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.0201, "21ms"), (1.5, "1.5s"), (59.96, "1m0s"), (360, "6m0s"), (61.2, "1m2s")],
)
def test_durations_are_openais(seconds, text):
    assert duration(seconds) == text

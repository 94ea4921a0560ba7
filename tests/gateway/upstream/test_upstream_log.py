"""Triton's message about a request is in the log, with the request id, and cannot flood it."""

import asyncio
import logging

import grpc
import pytest

from gateway.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NoCapacity,
    PromptTooLong,
    UpstreamError,
)
from gateway.upstream.triton_errors import (
    WORDS,
    UpstreamLog,
    request_id,
    to_gateway_error,
    translate,
)

INVALID, INTERNAL = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL


@pytest.fixture(autouse=True)
def _of_a_request(monkeypatch, caplog):
    monkeypatch.setattr("gateway.upstream.triton_errors._upstream_log", UpstreamLog())
    caplog.set_level(logging.INFO, "gateway")
    token = request_id.set("req-1")
    yield
    request_id.reset(token)


@pytest.mark.parametrize(
    ("status", "details", "error", "level"),
    [
        (INTERNAL, "secret path /root/model.bin", UpstreamError, "WARNING"),
        (grpc.StatusCode.UNAVAILABLE, "socket closed", NoCapacity, "WARNING"),
        (grpc.StatusCode.NOT_FOUND, "unknown model at /root", NoCapacity, "WARNING"),
        (grpc.StatusCode.NOT_FOUND, "no customer 7 in /root", UpstreamError, "WARNING"),
        (INVALID, "expected 4 dimensions in /root", InvalidRequest, "INFO"),
        (INTERNAL, "[tidegate:invalid_input] too long", InvalidRequest, "INFO"),
    ],
)
def test_the_log_has_the_message_and_the_response_has_not(caplog, status, details, error, level):
    fault = translate(status, details)
    assert isinstance(fault, error)
    assert "/root" not in fault.message
    record = caplog.records[-1]
    assert record.levelname == level
    assert record.getMessage() == f"req-1 upstream {status.name}: {details!r}"


@pytest.mark.parametrize(
    ("details", "was_sent"),
    [
        ("failed to connect to all addresses; last error: Connection refused", False),
        ("Connection refused by the weather service", True),  # the model's own
        ("cannot say: failed to connect to all addresses", True),
        ("Stream removed (Socket closed)", True),
    ],
)
def test_only_what_grpc_says_is_that_it_was_never_sent(details, was_sent):
    assert translate(grpc.StatusCode.UNAVAILABLE, details).was_sent is was_sent


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "[tidegate:invalid_input context_length] the prompt has 9 tokens",
            "the prompt has 9 tokens",
        ),
        (
            "Error generating stream: The decoder prompt (length 5000) is longer than the maximum "
            "model length of 4096. Make sure that ...",
            "the prompt is longer than the model's context of 4096 tokens",
        ),
        (
            "This model's maximum context length is 512 tokens. However, you requested 600 tokens",
            "the prompt is longer than the model's context of 512 tokens",
        ),
    ],
)
def test_a_prompt_that_is_too_long_is_known_whatever_the_engine(caplog, words, message):
    fault = translate(INTERNAL, words)
    assert (type(fault), fault.message) == (PromptTooLong, message)
    assert type(fault.at_row(3)) is type(fault.at("inputs.3")) is PromptTooLong
    assert caplog.records[-1].levelname == "INFO"


@pytest.mark.parametrize(
    ("words", "retry_after_s"),
    [
        ("[tidegate:no_capacity] 64 requests are waiting", 1),
        ("[tidegate:no_capacity] retry after 12 s: 64 requests are waiting", 12),
        ("[tidegate:no_capacity] retry after soon", 1),
    ],
)
def test_a_model_that_is_full_may_say_when_to_try_again(words, retry_after_s):
    fault = translate(INTERNAL, words)
    assert isinstance(fault, NoCapacity)
    assert fault.retry_after_s == retry_after_s


def test_a_traceback_is_one_line_of_bounded_length(caplog):
    forged = "ValueError: x\n  At:\n2026-01-01 WARNING forged\r\x1b[2J\u2028\x85" + "y" * 10_000
    translate(INTERNAL, forged)
    text = caplog.records[-1].getMessage()
    assert len(text.splitlines()) == 1
    assert text.isprintable()
    assert r"ValueError: x\n  At:\n2026" in text
    assert len(text) < WORDS + 200


def test_our_own_deadline_is_logged_too(caplog):
    assert isinstance(to_gateway_error(TimeoutError()), DeadlineExceeded)
    assert "req-1 upstream DEADLINE_EXCEEDED" in caplog.text


def test_the_background_does_not_repeat_itself_in_the_log(caplog):
    request_id.set("")
    translate(INTERNAL, "again and again")
    assert not caplog.records


def test_a_flood_of_refusals_is_cut_and_leaves_room_for_failures(caplog):
    for _ in range(1000):
        translate(INVALID, "wrong shape")
    lines = len(caplog.records)
    assert UpstreamLog.BURST <= lines <= UpstreamLog.BURST + UpstreamLog.RATE
    translate(INTERNAL, "a model broke")
    assert "a model broke" in caplog.records[-1].getMessage()


def test_what_was_left_out_is_counted(caplog, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("gateway.upstream.triton_errors.time.monotonic", lambda: now[0])
    log = UpstreamLog()
    for _ in range(int(log.BURST) + 7):
        log.note(logging.INFO, "req", INVALID, "x")
    now[0] += 1
    log.note(logging.INFO, "req", INVALID, "x")
    assert caplog.records[-2].getMessage() == "upstream errors: 7 more were not logged"


async def test_tasks_of_one_request_have_its_id(caplog):
    async def ask():
        translate(INTERNAL, "in a task")

    await asyncio.gather(ask(), asyncio.create_task(ask()))
    assert caplog.text.count("req-1 upstream INTERNAL: 'in a task'") == 2

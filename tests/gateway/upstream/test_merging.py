"""Short requests that wait together are sent as one, and no caller can tell."""

import asyncio
import struct
from collections.abc import Sequence

import pytest
from tritonclient.grpc import service_pb2

from gateway.errors import DeadlineExceeded, InvalidRequest, NoCapacity, TooLarge, UpstreamError
from gateway.models.short import Short
from gateway.upstream.merging import Merging, merged, split
from gateway.upstream.triton_errors import request_id
from modelspec.elements import decode, encode
from tests.gateway.eventually import until

SHORT = Short(256, 8, 2)
BAD = "bad"
BEFORE = ["first", "second", "third", "fourth", "fifth"]


def request_of(*texts: str, **fields: str) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name="m", **fields)
    request.inputs.add(name="text", datatype="BYTES", shape=[len(texts), 1])
    request.raw_input_contents.append(encode("BYTES", texts))
    return request


def texts_of(request: service_pb2.ModelInferRequest) -> list[str]:
    return [text.decode() for text in decode("BYTES", request.raw_input_contents[0])]


def response_of(texts: Sequence[str]) -> service_pb2.ModelInferResponse:
    """The length of each text, twice, and the text itself; an ensemble's, as Triton sends it."""
    response = service_pb2.ModelInferResponse(model_name="m", model_version="3")
    response.parameters["sequence_id"].int64_param = 0
    response.parameters["sequence_start"].bool_param = False
    response.outputs.add(name="lengths", datatype="FP32", shape=[len(texts), 2])
    lengths = [float(len(text)) for text in texts for _ in range(2)]
    response.raw_output_contents.append(struct.pack(f"<{len(lengths)}f", *lengths))
    response.outputs.add(name="text", datatype="BYTES", shape=[len(texts), 1])
    response.raw_output_contents.append(encode("BYTES", texts))
    return response


class Triton:
    """Takes requests, each for ``took_s``; refuses those with ``BAD``."""

    def __init__(self, took_s: float = 0.02) -> None:
        self.took_s = took_s
        self.sent: list[list[str]] = []
        self.ids: dict[tuple[str, ...], str] = {}  # texts -> whose requests they are in the log
        self.under_way = self.most_under_way = self.cancelled = 0
        self.error: Exception | None = None
        self.goes_another_way = False
        self.cuts_rows = self.takes_single_rows = False

    async def send(
        self, request: service_pb2.ModelInferRequest, timeout_s: float, tenant: str
    ) -> service_pb2.ModelInferResponse | None:
        texts = texts_of(request)
        self.sent.append(texts)
        self.ids[tuple(texts)] = request_id.get()
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await asyncio.sleep(self.took_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.under_way -= 1
        if self.error and (len(texts) > 1 or not self.takes_single_rows):
            raise self.error
        if BAD in texts:
            raise InvalidRequest("that is bad", row=texts.index(BAD))
        if self.goes_another_way:
            return None
        response = response_of(texts[:-1] if self.cuts_rows and len(texts) > 1 else texts)
        response.id = request.id
        return response


@pytest.fixture
def triton():
    return Triton()


@pytest.fixture
async def merging(triton, monkeypatch):
    monkeypatch.setattr("gateway.upstream.merging.KEPT_S", 0.05)
    merging = Merging(triton.send)
    yield merging
    await until(lambda: not merging._lanes)  # nothing is kept for long


async def ask(merging: Merging, *texts: str, timeout_s: float = 10.0, **fields: str):
    return await merging.infer(request_of(*texts, **fields), timeout_s, "tenant", SHORT)


def check(response: service_pb2.ModelInferResponse | None, *texts: str) -> None:
    expected = response_of(texts)
    for message in (response, expected):
        assert message is not None
        message.parameters.clear()  # they mean nothing to a client
    assert response == expected


async def test_each_caller_gets_its_own_rows_and_the_groups_are_shares_of_the_callers(
    merging, triton
):
    async def caller(name: str) -> None:
        for turn in range(6):
            text = name * (1 + turn)
            check(await ask(merging, text), text)

    await asyncio.gather(*(caller(name) for name in "abcdefgh"))
    sizes = [len(texts) for texts in triton.sent]
    # The first five found few others; from then on 8 callers are two groups of 3 or 4.
    assert sizes[:5] == [1] * 5 and triton.most_under_way == 5
    assert sum(sizes) == 48 and len(sizes) <= 20
    assert min(sizes[5:-3]) >= 3 and max(sizes) <= 4


async def test_a_few_callers_are_sent_each_alone(merging, triton):
    async def caller(name: str) -> None:
        for _ in range(4):
            check(await ask(merging, name), name)

    await asyncio.gather(*map(caller, "abcde"))
    assert len(triton.sent) == 20 and triton.most_under_way == 5


async def test_a_caller_alone_is_sent_what_it_sent(merging, triton):
    for text in "abc":
        request = request_of(text, id="mine")
        response = await merging.infer(request, 10, "tenant", SHORT)
        assert response is not None and response.id == "mine"
    assert triton.sent == [["a"], ["b"], ["c"]]


async def occupied(merging: Merging, triton: Triton) -> list[asyncio.Task]:
    """So many requests under way that whatever comes now waits."""
    tasks = [asyncio.create_task(ask(merging, text)) for text in BEFORE]
    await until(lambda: triton.under_way == len(BEFORE))
    return tasks


async def test_rows_ids_and_texts_of_any_length_are_kept_apart(merging, triton):
    before = await occupied(merging, triton)
    requests = [("one",), ("", "two", "三"), ("x" * 40,)]
    responses = await asyncio.gather(
        *(ask(merging, *texts, id=f"id {index}") for index, texts in enumerate(requests))
    )
    assert max(map(len, triton.sent)) > 3
    for index, (response, texts) in enumerate(zip(responses, requests, strict=True)):
        assert response is not None and response.id == f"id {index}"
        response.id = ""
        check(response, *texts)
    await asyncio.gather(*before)


async def test_one_bad_text_fails_alone(merging, triton):
    before = await occupied(merging, triton)
    good, bad, other = await asyncio.gather(
        ask(merging, "good"), ask(merging, BAD), ask(merging, "other"), return_exceptions=True
    )
    assert BAD in max(triton.sent, key=len)  # it was among others at first
    check(good, "good")
    check(other, "other")
    assert isinstance(bad, InvalidRequest) and bad.row == 0
    await asyncio.gather(*before)


@pytest.mark.parametrize("fault", ["cut", "failed", "another way"])
async def test_what_a_group_cannot_have_its_members_are_asked_for_alone(merging, triton, fault):
    before = await occupied(merging, triton)
    await asyncio.gather(*before)
    before = await occupied(merging, triton)
    triton.cuts_rows, triton.goes_another_way = fault == "cut", fault == "another way"
    triton.error = UpstreamError("it failed") if fault == "failed" else None
    triton.sent.clear()
    results = await asyncio.gather(
        ask(merging, "a"), ask(merging, "b"), ask(merging, "c"), return_exceptions=True
    )
    assert [texts for texts in triton.sent if len(texts) == 1]
    if fault == "cut":
        check(results[0], "a")
    elif fault == "failed":
        assert all(isinstance(result, UpstreamError) for result in results)
    else:
        assert results == [None] * 3
    await asyncio.gather(*before, return_exceptions=True)


async def as_request(identifier: str, merging: Merging, text: str):
    request_id.set(identifier)
    return await ask(merging, text)


async def test_what_fails_is_logged_as_the_request_of_who_sent_it(merging, triton):
    before = await occupied(merging, triton)
    requests = [as_request(text.upper(), merging, text) for text in ("a", BAD, "b")]
    tasks = [asyncio.create_task(request) for request in requests]
    await asyncio.gather(*tasks, *before, return_exceptions=True)
    assert triton.ids["a", BAD, "b"] == "A BAD B"
    assert [triton.ids[text,] for text in ("a", BAD, "b")] == ["A", "BAD", "B"]


async def test_who_leaves_after_its_group_failed_ends_its_own_work_alone(merging, triton):
    before = await occupied(merging, triton)
    triton.took_s = 0.5
    tasks = [asyncio.create_task(ask(merging, text)) for text in ("leaves", BAD, "stays")]
    await until(lambda: ["leaves"] in triton.sent)
    tasks[0].cancel()
    check(await tasks[2], "stays")
    assert triton.cancelled == 1
    await asyncio.gather(*tasks, *before, return_exceptions=True)


async def test_what_is_too_large_together_is_not_too_large_alone(merging, triton):
    before = await occupied(merging, triton)
    await asyncio.gather(*before)
    before = await occupied(merging, triton)
    triton.error, triton.takes_single_rows = TooLarge("too large"), True
    texts = "abcdefgh"
    for text, response in zip(
        texts, await asyncio.gather(*(ask(merging, text) for text in texts)), strict=True
    ):
        check(response, text)
    await asyncio.gather(*before)


async def test_a_model_that_takes_no_groups_is_not_asked_twice_for_ever(merging, triton):
    await asyncio.gather(*await occupied(merging, triton))
    triton.cuts_rows = True
    for _ in range(4):
        await asyncio.gather(*(ask(merging, text) for text in "abcdefgh"))
    groups = [texts for texts in triton.sent if len(texts) > 1]
    assert 1 <= len(groups) <= 2


async def test_an_error_of_a_group_is_each_callers_own(merging, triton):
    before = await occupied(merging, triton)
    triton.error = NoCapacity("gone", retry_after_s=3)
    results = await asyncio.gather(
        *(ask(merging, text) for text in "abc"), *before[1:], return_exceptions=True
    )
    errors = results[:3]
    assert len(set(map(id, errors))) == 3
    assert {(str(error), error.retry_after_s) for error in errors} == {("gone", 3)}
    await asyncio.gather(*before, return_exceptions=True)


async def lane_after_a_crowd(merging: Merging, triton: Triton):
    """The lane, when nothing is under way, but many callers were there lately, and a stall."""
    await asyncio.gather(*await occupied(merging, triton))
    (lane,) = merging._lanes.values()
    lane._crowd, lane._took_s = 64, 600.0
    return lane


async def test_what_a_stall_took_is_not_waited_for(merging, triton):
    await lane_after_a_crowd(merging, triton)
    async with asyncio.timeout(30):
        check(await ask(merging, "a"), "a")


async def test_a_full_group_waits_for_nobody(merging, triton, monkeypatch):
    monkeypatch.setattr("gateway.upstream.merging.MOST_GATHER_S", 600.0)
    await lane_after_a_crowd(merging, triton)
    async with asyncio.timeout(30):
        await asyncio.gather(*(ask(merging, text) for text in "abcdefgh"))
    assert triton.sent[-1] == list("abcdefgh")


async def test_a_lane_whose_last_request_expired_just_as_it_was_due_is_forgotten(
    merging, triton, monkeypatch
):
    monkeypatch.setattr("gateway.upstream.merging.MOST_GATHER_S", 600.0)
    lane = await lane_after_a_crowd(merging, triton)
    late = asyncio.create_task(ask(merging, "late", timeout_s=600))
    await until(lambda: lane._closing is None)  # it was looked at, and was not empty
    lane._waiting[0].expire()
    lane._go()
    with pytest.raises(DeadlineExceeded):
        await late
    await until(lambda: not merging._lanes)


async def test_what_requests_waited_for_each_other_is_measured(merging, triton):
    """It is a queue that Triton does not see: without it, the limit would let in ever more."""
    before = await occupied(merging, triton)
    await asyncio.gather(*(ask(merging, text) for text in "abc"), *before)
    waits = merging.take_waits("m")
    assert waits.requests == len(BEFORE) + 3
    assert waits.seconds > 0
    assert (merging.take_waits("m").requests, merging.take_waits("other").requests) == (0, 0)


async def test_a_server_that_is_gone_is_not_asked_again_for_each(merging, triton):
    before = await occupied(merging, triton)
    triton.error = NoCapacity("gone")
    results = await asyncio.gather(
        *(ask(merging, text) for text in "abcdef"), *before, return_exceptions=True
    )
    assert all(isinstance(result, NoCapacity) for result in results)
    assert sorted(text for texts in triton.sent for text in texts) == [
        *"abcdef",
        *sorted(BEFORE),
    ]


async def test_each_keeps_its_own_deadline(merging, triton):
    triton.took_s = 0.3
    before = await occupied(merging, triton)
    late, unsent, good = await asyncio.gather(
        ask(merging, "late", timeout_s=0.4),
        ask(merging, "unsent", timeout_s=0.05),
        ask(merging, "good"),
        return_exceptions=True,
    )
    assert isinstance(late, DeadlineExceeded) and isinstance(unsent, DeadlineExceeded)
    check(good, "good")
    assert "unsent" not in [text for texts in triton.sent for text in texts]
    await asyncio.gather(*before)


async def test_a_group_is_given_up_when_the_last_of_its_callers_has_left(merging, triton):
    before = await occupied(merging, triton)
    await asyncio.gather(*before)
    triton.took_s = 60
    before = await occupied(merging, triton)
    stays = [asyncio.create_task(ask(merging, text)) for text in "ab"]
    await asyncio.sleep(0)
    for task in before[1:]:
        task.cancel()
    await until(lambda: triton.sent[-1] == ["a", "b"])
    stays[0].cancel()
    await asyncio.sleep(0.01)
    assert triton.cancelled == 4
    stays[1].cancel()
    await until(lambda: triton.cancelled == 5)
    before[0].cancel()
    await asyncio.gather(*before, *stays, return_exceptions=True)


async def test_who_leaves_before_it_was_sent_costs_nothing(merging, triton):
    before = await occupied(merging, triton)
    leaves = asyncio.create_task(ask(merging, "leaves"))
    await asyncio.sleep(0)
    leaves.cancel()
    check(await ask(merging, "stays"), "stays")
    await asyncio.gather(*before)
    assert ["leaves"] not in triton.sent and ["stays"] in triton.sent


async def test_requests_of_another_kind_are_not_among_them(merging, triton):
    before = await occupied(merging, triton)
    with_output = request_of("output")
    with_output.outputs.add(name="lengths")
    wider = request_of("wide", "r")
    wider.inputs[0].shape[:] = [1, 2]
    uneven = request_of("uneven")
    uneven.inputs.add(name="other", datatype="FP32", shape=[2])
    uneven.raw_input_contents.append(bytes(8))
    requests = [with_output, wider, uneven, request_of("version", model_version="3")]
    await asyncio.gather(*(merging.infer(r, 10, "tenant", SHORT) for r in requests))
    assert sorted(triton.sent[len(BEFORE) :]) == [
        ["output"],
        ["uneven"],
        ["version"],
        ["wide", "r"],
    ]
    await asyncio.gather(*before)


async def test_a_model_that_does_not_say_so_is_sent_each_alone(triton):
    merging = Merging(triton.send)
    work = (merging.infer(request_of(t), 10, "tenant", SHORT.alone) for t in "abcdefgh")
    await asyncio.gather(*work)
    assert triton.most_under_way == 8


def test_parameters_of_a_response_are_nobodys_own():
    response = response_of(["a", "b"])
    response.parameters["row"].int64_param = 1
    with pytest.raises(ValueError, match="parameters"):
        split(response, [1, 1])


def test_an_empty_dimension_is_split_too():
    response = service_pb2.ModelInferResponse()
    response.outputs.add(name="none", datatype="FP32", shape=[2, 0])
    response.raw_output_contents.append(b"")
    parts = split(response, [1, 1])
    assert [list(part.outputs[0].shape) for part in parts] == [[1, 0], [1, 0]]


@pytest.mark.parametrize(
    ("datatype", "shape", "raw"),
    [
        ("FP32", [3], bytes(12)),
        ("FP32", [2, 1], bytes(7)),
        ("BYTES", [2, 1], b"\1\0\0\0a"),
        ("BYTES", [2, 1], b"\1\0\0\0a\1\0\0\0bc"),
        ("BF16", [2, 1], bytes(4)),
        ("FP32", [], bytes(4)),
    ],
)
def test_what_cannot_be_split_is_said(datatype, shape, raw):
    response = service_pb2.ModelInferResponse()
    response.outputs.add(name="y", datatype=datatype, shape=shape)
    response.raw_output_contents.append(raw)
    with pytest.raises(ValueError, match="y "):
        split(response, [1, 1])


def test_a_merged_request_asks_for_what_its_members_ask_for():
    requests = [request_of("a", model_version="3"), request_of("b", "c", model_version="3")]
    for request in requests:
        request.outputs.add(name="lengths")
    whole = merged(requests)
    assert (whole.model_version, texts_of(whole)) == ("3", ["a", "b", "c"])
    assert list(whole.inputs[0].shape) == [3, 1]
    assert [output.name for output in whole.outputs] == ["lengths"]

"""Open sequences: what one process remembers about them, and how many a tenant may have."""

import pytest
from tritonclient.grpc import model_config_pb2, service_pb2

from gateway.errors import DeadlineExceeded, InvalidRequest, NoCapacity, QuotaExceeded
from gateway.models.catalogue import sequence_slots
from gateway.models.sequences import (
    LOST,
    OpenSequences,
    SequenceSlots,
    SequenceStep,
    not_begun,
    step_of,
)

GROUP = ("tenant", "m", "a:1")
IDLE_S = 10.0


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def table(clock):
    return OpenSequences(clock)


def _ask(table, identifier, *, starts=False, ends=False, group=GROUP, limit=2, error=None):
    step = SequenceStep(identifier, starts, ends)
    try:
        with table.under_way(step, group, IDLE_S, limit):
            if error:
                raise error
    except Exception as caught:
        if caught is not error:
            raise


def _request(**parameters):
    request = service_pb2.ModelInferRequest()
    for name, value in parameters.items():
        field = {bool: "bool_param", int: "int64_param", str: "string_param"}[type(value)]
        setattr(request.parameters[name], field, value)
    return request


def test_the_sequence_step_of_a_request():
    assert step_of(_request()) is None
    assert step_of(_request(sequence_id=0, sequence_start=True)) is None
    assert step_of(_request(sequence_id="", sequence_start=True)) is None
    assert step_of(_request(sequence_id=5)) == SequenceStep(5, False, False)
    assert step_of(_request(sequence_id="x", sequence_end=True)) == SequenceStep("x", False, True)
    both = _request(sequence_id=5, sequence_start=True, sequence_end=True)
    assert step_of(both) == SequenceStep(5, True, True)


def test_the_cap_holds_until_one_ends(table):
    _ask(table, 1, starts=True)
    _ask(table, 2, starts=True)
    with pytest.raises(QuotaExceeded, match="you have 2 open sequences with 'm'") as caught:
        _ask(table, 3, starts=True)
    assert caught.value.retry_after_s == IDLE_S
    _ask(table, 1)  # they continue
    _ask(table, 1, ends=True)
    _ask(table, 3, starts=True)


def test_one_that_is_restarted_takes_no_second_slot(table):
    for _ in range(5):
        _ask(table, 1, starts=True)
    _ask(table, 2, starts=True)
    assert len(table) == 2


def test_single_requests_take_no_slot(table):
    for identifier in range(20):
        _ask(table, identifier, starts=True, ends=True)
    assert len(table) == 0


def test_the_cap_is_each_tenant_s_each_model_s_and_each_server_s(table):
    for group in (GROUP, ("other", "m", "a:1"), ("tenant", "n", "a:1"), ("tenant", "m", "b:1")):
        for number in range(2):
            _ask(table, f"{group}{number}", starts=True, group=group)
    assert len(table) == 8


def test_idle_ones_are_freed_when_triton_drops_them(table, clock):
    _ask(table, 1, starts=True)
    _ask(table, 2, starts=True)
    clock.now += IDLE_S - 1
    _ask(table, 2)
    clock.now += 1
    _ask(table, 3, starts=True)  # in the slot of 1
    with pytest.raises(QuotaExceeded):
        _ask(table, 4, starts=True)


def test_one_with_a_request_under_way_is_not_idle(table, clock):
    with table.under_way(SequenceStep(1, True, False), GROUP, IDLE_S, 1):
        clock.now += 10 * IDLE_S
        with pytest.raises(QuotaExceeded):
            _ask(table, 2, starts=True, limit=1)
    assert table.address(1) == "a:1"


def test_a_failed_start_keeps_its_slot_since_triton_keeps_it_too(table, clock):
    _ask(table, 1, starts=True, limit=1, error=DeadlineExceeded("late"))
    with pytest.raises(QuotaExceeded):
        _ask(table, 2, starts=True, limit=1)
    clock.now += IDLE_S
    _ask(table, 2, starts=True, limit=1)


@pytest.mark.parametrize("error", [NoCapacity("the server has gone"), not_begun()])
def test_what_no_server_has_takes_no_slot(table, error):
    _ask(table, 1, error=error)
    assert len(table) == 0


def test_one_started_in_another_process_is_counted_and_not_refused(table):
    for identifier in range(3):
        _ask(table, identifier)
    with pytest.raises(QuotaExceeded):
        _ask(table, 9, starts=True)


def test_an_error_of_the_model_ends_nothing(table):
    _ask(table, 1, starts=True)
    _ask(table, 1, error=InvalidRequest("the model refused it"))
    assert table.address(1) == "a:1"


def test_a_lost_one_stays_lost_until_it_is_restarted(table, clock):
    _ask(table, 1, starts=True)
    table.lose(1)
    assert table.address(1) == LOST
    _ask(table, 1, starts=True, group=("tenant", "m", "b:1"))
    assert table.address(1) == "b:1"
    table.lose(1)
    clock.now += IDLE_S
    assert table.address(1) == ""


def test_nothing_stays_for_ever(table, clock):
    for identifier in range(1000):
        _ask(table, identifier, starts=True, limit=None, group=("t", "m", str(identifier)))
    clock.now += IDLE_S
    table.sweep()
    assert len(table) == 0
    assert not table._groups


def test_slots_by_the_model_s_own_numbers():
    config = model_config_pb2.ModelConfig(max_batch_size=4)
    assert sequence_slots(config) is None
    config.sequence_batching.direct.SetInParent()
    assert sequence_slots(config) == SequenceSlots(4, 1.0)
    config.instance_group.add(count=2)
    assert sequence_slots(config) == SequenceSlots(8, 1.0)
    config.sequence_batching.oldest.max_candidate_sequences = 16
    config.sequence_batching.max_sequence_idle_microseconds = 5_000_000
    assert sequence_slots(config) == SequenceSlots(32, 5.0)
    config.instance_group[0].gpus.extend([0, 1])
    assert sequence_slots(config) == SequenceSlots(64, 5.0)

"""The choice of a replica: a pure function, tested without any server."""

import random

import pytest

from gateway.upstream.balancing import Health, ReplicaState, candidates, choose, preferred

DOWN, UNKNOWN, UP = Health.DOWN, Health.UNKNOWN, Health.UP


def _chosen(*states: ReplicaState, limit: int = 8) -> set[int | None]:
    """All choices over many draws."""
    draw = random.Random(0).random  # noqa: S311 - repeatable, nothing secret
    return {choose(states, limit, draw) for _ in range(100)}


def test_least_in_flight_first():
    assert _chosen(ReplicaState(UP, 3), ReplicaState(UP, 1)) == {1}


def _shares(states: list[ReplicaState], times: int = 3000) -> list[float]:
    draw = random.Random(0).random  # noqa: S311 - repeatable, nothing secret
    chosen = [choose(states, 8, draw) for _ in range(times)]
    return [chosen.count(index) / times for index in range(len(states))]


def test_equal_ones_get_equal_shares():
    shares = _shares([ReplicaState(UP, 1)] * 4)
    assert shares == pytest.approx([0.25] * 4, abs=0.03)


def test_of_two_that_are_drawn_the_less_busy_one_is_chosen():
    """The busiest of three gets nothing; the others by how often they are drawn together."""
    shares = _shares([ReplicaState(UP, 0), ReplicaState(UP, 1), ReplicaState(UP, 2)])
    assert shares == pytest.approx([2 / 3, 1 / 3, 0], abs=0.03)


def test_a_slower_one_is_asked_less_and_a_difference_by_chance_does_not_count():
    slow = ReplicaState(UP, 0, latency_s=0.03)
    assert _shares([slow, ReplicaState(UP, 0, latency_s=0.01)]) == pytest.approx(
        [0.25, 0.75], abs=0.03
    )
    assert _shares([slow, ReplicaState(UP, 1, latency_s=0.01)]) == [0, 1]
    assert _shares([slow, ReplicaState(UP, 2, latency_s=0.01)]) == pytest.approx(
        [0.5, 0.5], abs=0.03
    )
    assert _shares([slow, ReplicaState(UP, 0, latency_s=0.016)]) == pytest.approx(
        [0.5, 0.5], abs=0.03
    )
    assert _shares([slow, ReplicaState(UP, 0)]) == pytest.approx([0.5, 0.5], abs=0.03)
    slowest = ReplicaState(UP, 0, latency_s=60.0)  # it is asked all the same when others are busy
    assert _shares([slowest, ReplicaState(UP, 4, latency_s=0.01)]) == [1, 0]


def test_one_that_is_new_gets_a_part_of_its_share():
    shares = _shares([ReplicaState(UP, 0, weight=0.2), ReplicaState(UP, 0)])
    assert shares == pytest.approx([0.1, 0.9], abs=0.02)
    assert _shares([ReplicaState(UP, 0, weight=0.2), ReplicaState(UP, 8)]) == [1, 0]


def test_an_ejected_one_is_asked_only_if_all_are():
    ejected = ReplicaState(UP, 0, is_ejected=True)
    assert _chosen(ejected, ReplicaState(UP, 5)) == {1}
    assert _chosen(ejected, ReplicaState(DOWN, 5)) == {0}
    assert _chosen(ejected, ejected) == {0, 1}
    assert _chosen(ejected, ReplicaState(UNKNOWN, 0)) == {0}
    assert _chosen(ejected, ReplicaState(UP, 0, is_right=False)) == {0}


@pytest.mark.parametrize("unhealthy", [DOWN, UNKNOWN])
def test_what_is_not_up_is_left_out_while_anything_is_up(unhealthy):
    assert _chosen(ReplicaState(unhealthy, 0), ReplicaState(UP, 7)) == {1}


def test_a_full_one_that_is_up_is_not_replaced_by_one_that_is_not():
    assert _chosen(ReplicaState(UNKNOWN, 0), ReplicaState(UP, 8)) == {None}


def test_without_anything_up_what_is_being_connected_to_is_asked():
    assert _chosen(ReplicaState(DOWN, 0), ReplicaState(UNKNOWN, 5)) == {1}


def test_nobody_is_asked_when_all_are_down():
    assert _chosen(ReplicaState(DOWN, 0), ReplicaState(DOWN, 0)) == {None}
    assert candidates([ReplicaState(DOWN, 0)]) == []


def test_a_full_pool_is_not_an_empty_one():
    full = [ReplicaState(UP, 8), ReplicaState(UP, 9)]
    assert _chosen(*full) == {None}
    assert candidates(full) == [0, 1]


def test_failing_fast_is_not_being_least_busy():
    assert _chosen(ReplicaState(UP, 0, failures=4), ReplicaState(UP, 3)) == {1}
    assert _chosen(ReplicaState(UP, 0, failures=4), ReplicaState(UP, 5)) == {0}


def test_failures_shut_nobody_out():
    """Requests can be made to fail: they change the order, and no more."""
    assert _chosen(ReplicaState(UP, 0, failures=1000), ReplicaState(DOWN, 0)) == {0}
    assert _chosen(ReplicaState(UP, 0, failures=9), ReplicaState(UP, 0, failures=9)) == {0, 1}


def test_only_those_that_serve_the_model():
    assert _chosen(ReplicaState(UP, 0, serves=False), ReplicaState(UP, 5)) == {1}
    assert _chosen(ReplicaState(UP, 0, serves=False), ReplicaState(DOWN, 5)) == {None}


def test_one_that_answers_its_golden_probe_wrongly_is_asked_only_if_all_do():
    assert _chosen(ReplicaState(UP, 0, is_right=False), ReplicaState(UP, 5)) == {1}
    assert _chosen(ReplicaState(UP, 0, is_right=False), ReplicaState(UP, 5, is_right=False)) == {0}


def test_a_sequence_s_order_is_the_same_however_the_list_is_written():
    addresses = ["a:1", "b:1", "c:1"]
    for sequence in range(50):
        assert preferred(sequence, addresses) == preferred(sequence, reversed(addresses))


def test_sequences_are_spread_and_move_only_with_their_own_replica():
    addresses = ["a:1", "b:1", "c:1"]
    before = {sequence: preferred(sequence, addresses) for sequence in range(3000)}
    firsts = [order[0] for order in before.values()]
    assert all(900 < firsts.count(address) < 1100 for address in addresses)
    for sequence, order in before.items():
        remaining = preferred(sequence, ["a:1", "c:1"])
        assert remaining == [address for address in order if address != "b:1"]


def test_a_drained_one_gets_a_request_only_if_no_other_that_is_as_well_can_take_it():
    drained = ReplicaState(Health.UP, 0, is_drained=True)
    busy = ReplicaState(Health.UP, 9, failures=9, latency_s=9.0)
    assert candidates([drained, busy]) == [1]
    assert candidates([drained, busy._replace(serves=False)]) == [0]
    for health in (Health.DOWN, Health.UNKNOWN):
        assert candidates([drained, busy._replace(health=health)]) == [0]


@pytest.mark.parametrize("fault", [{"is_right": False}, {"is_ejected": True}])
def test_a_drain_sends_nothing_to_one_that_is_wrong_or_ejected(fault):
    drained, unwell = ReplicaState(UP, 0, is_drained=True), ReplicaState(UP, 0)._replace(**fault)
    assert candidates([drained, unwell]) == [0]
    assert candidates([drained._replace(**fault), unwell]) == [1]

"""Space and search: pure functions, so every test is a few lines."""

from dataclasses import replace

import pytest

from serving.tuning.search import Score, concluded, finalists, search_state, winner
from serving.tuning.setting import Setting
from serving.tuning.space import THREADS_PER_CORE, Space, proposals

DEFAULT = Setting(2, 1, 64, True, 0, (16, 32, 64, 128, 256), 1)


def test_every_move_changes_one_serving_parameter_to_a_valid_value():
    space = Space(DEFAULT, cores=4, lengths=[5, 7, 9, 40])
    count = 0
    for serving_parameter, others in space.moves(DEFAULT).items():
        for setting in others:
            count += 1
            mine, theirs = setting.as_dict(), DEFAULT.as_dict()
            changed = {k for k in theirs if mine.get(k) != theirs[k]}
            expected = (
                {"instances", "threads"}
                if "threads" in serving_parameter
                else {serving_parameter.replace(" ", "_")}
            )
            assert changed <= expected | {"queue_delay_us"} and changed
            assert setting.instances * setting.threads <= THREADS_PER_CORE * 4
            assert setting.max_batch <= DEFAULT.max_batch
            assert setting.buckets[-1] == 256 and list(setting.buckets) == sorted(
                set(setting.buckets)
            )
    assert count > 10


def test_without_dynamic_batching_there_is_no_queue_delay_to_try():
    space = Space(DEFAULT, 2)
    (off,) = space.moves(DEFAULT)["dynamic batching"]
    assert off.changes(DEFAULT) == "dynamic_batching on -> off"
    assert "queue delay" not in space.moves(off)
    assert space.moves(off)["dynamic batching"] == [DEFAULT]
    never = Setting(instances=1, dynamic_batching=False)
    (on,) = Space(never, 2).moves(never)["dynamic batching"]
    assert (on.dynamic_batching, on.queue_delay_us) == (True, 0)
    assert len(Space(never, 2).moves(on)["queue delay"]) == 3


def test_a_pipeline_only_has_moves_for_its_serving_parameters():
    assert set(Space(Setting(instances=1), cores=2).moves(Setting(instances=1))) == {
        "instances x threads"
    }
    assert Space(Setting(), cores=2).moves(Setting()) == {}


@pytest.mark.parametrize("last", [12, 64, 512])
def test_buckets_come_from_the_lengths_and_keep_the_longest_text(last):
    candidates = proposals((min(16, last), last) if last > 16 else (last,), [6, 10, 10, 31, 900])
    assert all(edges[-1] == last for edges in candidates)
    assert len(set(candidates)) == len(candidates) > 1
    if last == 512:
        assert any({12, 32} <= set(edges) for edges in candidates)  # the quartiles, rounded up


def search(space, value, limit=200):
    """The whole search against a function that gives each setting's score."""
    scores = {}
    for _ in range(limit):
        current = search_state(space, scores)
        if current.next is None:
            return current, scores
        assert current.next not in scores and current.next != space.default
        scores[current.next] = value(current.next)
    raise AssertionError("the search does not end")


def test_it_finds_the_gain_of_two_serving_parameters_together():
    def value(setting):
        gain = 1.3 if setting.buckets[0] == 8 else 1.0
        return Score(gain * (1.2 if (setting.instances, setting.threads) == (1, 2) else 1.0), 0.01)

    result, _ = search(Space(DEFAULT, 2, [9] * 50), value)
    assert (result.best.buckets[0], result.best.instances, result.best.threads) == (8, 1, 2)
    assert [move.serving_parameter for move in result.moves] == ["buckets", "instances x threads"]
    assert result.moves[1].ratio_before == pytest.approx(1.3)
    assert result.moves[1].ratio_after == result.ratio == pytest.approx(1.56)


def test_a_forbidden_setting_is_neither_chosen_nor_measured_twice():
    result, scores = search(
        Space(DEFAULT, 2), lambda s: None if s.max_batch < 64 else Score(0.9 + s.threads / 1000)
    )
    assert result.best == DEFAULT and result.moves == () and None in scores.values()
    assert finalists(result, 2) == []


@pytest.mark.parametrize(("ratio", "error", "moves"), [(1.3, 0.02, 1), (1.3, 0.4, 0), (1.01, 0, 0)])
def test_noise_is_no_gain(ratio, error, moves):
    better = replace(DEFAULT, queue_delay_us=500)
    result, _ = search(Space(DEFAULT, 2), lambda s: Score(ratio if s == better else 1.0, error))
    assert len(result.moves) == moves


def test_it_resumes_where_it_was():
    """The same trials give the same next one: the search has no other state."""
    space = Space(DEFAULT, 2)
    scores = {}
    for _ in range(7):
        scores[search_state(space, scores).next] = Score(1.0)
    again = dict(reversed(scores.items()))
    assert search_state(space, again) == search_state(space, scores)


def test_a_budget_that_ends_within_a_serving_parameter_counts_what_was_measured():
    space = Space(DEFAULT, 2)
    assert concluded(space, {}).moves == ()
    first = search_state(space, {}).next
    result = concluded(space, {first: Score(1.4)})
    assert (result.best, result.next) == (first, None)
    assert search_state(space, {first: Score(1.4)}).moves == ()


def test_the_finalists_are_the_way_to_the_best():
    result, _ = search(
        Space(DEFAULT, 2),
        lambda s: Score((1.5 if s.buckets[0] == 8 else 1) * (1.2 if s.queue_delay_us else 1)),
    )
    assert finalists(result, 3) == [move.after for move in result.moves]
    assert finalists(result, 1) == [result.best]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([Score(1.5), Score(1.8)], 1),
        ([Score(1.5, 0.1), Score(1.6, 0.1)], 0),  # the second one gains no more than noise
        ([Score(1.5), None], 0),  # over the bound after all
        ([None, Score(1.4)], 1),
        ([Score(1.01), Score(0.9)], None),
        ([], None),
    ],
)
def test_a_serving_parameter_is_kept_only_if_it_still_gains_something(scores, expected):
    settings = [replace(DEFAULT, queue_delay_us=delay) for delay in (1, 2)]
    best = winner(list(zip(settings, scores, strict=False)))
    assert best == (None if expected is None else settings[expected])

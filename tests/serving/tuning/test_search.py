"""Space and search: pure, so every case is a few lines."""

from dataclasses import replace

import pytest

from serving.tuning.search import Score, concluded, finalists, standing, winner
from serving.tuning.setting import Setting
from serving.tuning.space import THREADS_PER_CORE, Space, proposals

DEFAULT = Setting(2, 1, 64, 0, (16, 32, 64, 128, 256), 1)


def test_every_move_turns_one_knob_within_what_is_legal():
    space = Space(DEFAULT, cores=4, lengths=[5, 7, 9, 40])
    seen = 0
    for serving_parameter, others in space.moves(DEFAULT).items():
        for each in others:
            seen += 1
            changed = {k for k, v in each.as_dict().items() if v != DEFAULT.as_dict()[k]}
            wanted = (
                {"instances", "threads"}
                if "threads" in serving_parameter
                else {serving_parameter.replace(" ", "_")}
            )
            assert changed <= wanted | {"queue_delay_us"} and changed
            assert each.instances * each.threads <= THREADS_PER_CORE * 4
            assert each.max_batch <= DEFAULT.max_batch
            assert each.buckets[-1] == 256 and list(each.buckets) == sorted(set(each.buckets))
    assert seen > 10


def test_a_pipeline_has_only_the_knobs_that_it_has():
    assert set(Space(Setting(instances=1), cores=2).moves(Setting(instances=1))) == {
        "instances x threads"
    }
    assert Space(Setting(), cores=2).moves(Setting()) == {}


@pytest.mark.parametrize("last", [12, 64, 512])
def test_buckets_come_from_the_lengths_and_keep_the_longest_text(last):
    found = proposals((min(16, last), last) if last > 16 else (last,), [6, 10, 10, 31, 900])
    assert all(edges[-1] == last for edges in found)
    assert len(set(found)) == len(found) > 1
    if last == 512:
        assert any({12, 32} <= set(edges) for edges in found)  # the quartiles, rounded up


def search(space, value, limit=200):
    """The whole search against a function that says each setting's ratio."""
    scores = {}
    for _ in range(limit):
        now = standing(space, scores)
        if now.next is None:
            return now, scores
        assert now.next not in scores and now.next != space.default
        scores[now.next] = value(now.next)
    raise AssertionError("the search does not end")


def test_it_finds_what_two_knobs_bring_together():
    def value(setting):
        gain = 1.3 if setting.buckets[0] == 8 else 1.0
        return Score(gain * (1.2 if (setting.instances, setting.threads) == (1, 2) else 1.0), 0.01)

    now, _ = search(Space(DEFAULT, 2, [9] * 50), value)
    assert (now.best.buckets[0], now.best.instances, now.best.threads) == (8, 1, 2)
    assert [move.serving_parameter for move in now.moves] == ["buckets", "instances x threads"]
    assert now.moves[1].ratio_before == pytest.approx(1.3)
    assert now.moves[1].ratio_after == now.ratio == pytest.approx(1.56)


def test_what_may_not_be_used_is_never_chosen_nor_asked_twice():
    now, scores = search(
        Space(DEFAULT, 2), lambda s: None if s.max_batch < 64 else Score(0.9 + s.threads / 1000)
    )
    assert now.best == DEFAULT and now.moves == () and None in scores.values()
    assert finalists(now, 2) == []


@pytest.mark.parametrize(("ratio", "error", "moves"), [(1.3, 0.02, 1), (1.3, 0.4, 0), (1.01, 0, 0)])
def test_noise_is_no_gain(ratio, error, moves):
    better = replace(DEFAULT, queue_delay_us=500)
    now, _ = search(Space(DEFAULT, 2), lambda s: Score(ratio if s == better else 1.0, error))
    assert len(now.moves) == moves


def test_it_goes_on_where_it_was():
    """The same trials, the same next one: nothing is kept beside the trials."""
    space = Space(DEFAULT, 2)
    scores = {}
    for _ in range(7):
        scores[standing(space, scores).next] = Score(1.0)
    again = dict(reversed(scores.items()))
    assert standing(space, again) == standing(space, scores)


def test_a_budget_that_ends_in_the_middle_of_a_knob_counts_what_was_measured():
    space = Space(DEFAULT, 2)
    assert concluded(space, {}).moves == ()
    first = standing(space, {}).next
    now = concluded(space, {first: Score(1.4)})
    assert (now.best, now.next) == (first, None)
    assert standing(space, {first: Score(1.4)}).moves == ()


def test_the_finalists_are_the_way_to_the_best():
    now, _ = search(
        Space(DEFAULT, 2),
        lambda s: Score((1.5 if s.buckets[0] == 8 else 1) * (1.2 if s.queue_delay_us else 1)),
    )
    assert finalists(now, 3) == [move.after for move in now.moves]
    assert finalists(now, 1) == [now.best]


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ([Score(1.5), Score(1.8)], 1),
        (
            [Score(1.5, 0.1), Score(1.6, 0.1)],
            0,
        ),  # the second serving parameter brings no more than noise
        ([Score(1.5), None], 0),  # over the bound after all
        ([None, Score(1.4)], 1),
        ([Score(1.01), Score(0.9)], None),
        ([], None),
    ],
)
def test_a_knob_is_kept_only_if_it_still_brings_something(scores, kept):
    settings = [replace(DEFAULT, queue_delay_us=delay) for delay in (1, 2)]
    found = winner(list(zip(settings, scores, strict=False)))
    assert found == (None if kept is None else settings[kept])

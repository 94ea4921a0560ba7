"""The openvino_genai backend's estimate of how long what waits will wait."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[3] / "serving" / "backends" / "openvino_genai"))

from lm_waiting import MEASURED, REMEMBERED_TOKENS, Claim, Pace, first_token_waits

MOST_S = 20.0


def pace(step_s: float = 0.5, prompt_token_s: float = 0.0, share: float = 1.0) -> Pace:
    measured = Pace()
    measured.step_took(step_s, 0)
    if prompt_token_s:
        measured.step_took(step_s + 100 * prompt_token_s, 100)
    while abs(measured.share - share) > 1e-3:
        measured.ended(int(share * REMEMBERED_TOKENS), REMEMBERED_TOKENS)
    return measured


def job(tokens: int = 10, prompt_tokens: int = 0, reserved: int = 100, **more: float) -> Claim:
    return Claim(reserved, 1, tokens, prompt_tokens, **more)


def test_nothing_is_expected_before_a_step_was_measured():
    assert first_token_waits(Pace(), [job(1000)], [job(1000)] * 3, 100, 1, MOST_S) == [0.0] * 3


@pytest.mark.parametrize(("tokens", "places"), [(200, 64), (10_000, 2)])
def test_each_begins_when_enough_of_those_before_have_ended(tokens, places):
    """The two that run end after 10 and 4 steps; each that begins takes 10 steps of 0.5 s."""
    waits = first_token_waits(pace(), [job(10), job(4)], [job()] * 4, tokens, places, MOST_S)
    assert waits == pytest.approx([2.5, 5.5, 8.0, 11.0], abs=0.1)


def test_half_of_the_tokens_take_half_of_the_time():
    waits = first_token_waits(pace(share=0.5), [job(10)], [job()] * 2, 100, 1, MOST_S)
    assert waits == pytest.approx([3.0, 6.0], abs=0.1)


def test_prompts_are_read_one_after_another():
    """Nothing runs; there is room for all, and the 100 tokens of a prompt take 2 s."""
    waits = first_token_waits(
        pace(prompt_token_s=0.02), [], [job(prompt_tokens=100)] * 3, 999, 9, MOST_S
    )
    assert waits == pytest.approx([2.5, 4.5, 6.5], abs=0.1)


def test_a_large_one_waits_for_several_to_end():
    running = [job(4), job(8), job(20)]
    (wait,) = first_token_waits(pace(), running, [job(reserved=200)], 300, 64, MOST_S)
    assert wait == pytest.approx(8 * 0.5 + 0.5, abs=0.1)


def test_one_that_waits_for_too_long_takes_no_room_from_those_behind():
    waiting = [job(1000), job(10, waited_s=MOST_S), job(10)]
    waits = first_token_waits(pace(), [job(10)], waiting, 200, 64, MOST_S)
    assert waits[0] == pytest.approx(0.5)
    assert waits[1:] == pytest.approx([5.5, 5.5], abs=0.1)


def test_a_step_that_the_machine_held_up_says_nothing():
    measured = pace()
    for seconds in [0.5] * MEASURED + [60.0] * 3:
        measured.step_took(seconds, 0)
    assert measured.step_s == 0.5
    for seconds in [0.7] * MEASURED:
        measured.step_took(seconds, 0)
    assert measured.step_s == 0.7


def test_the_share_follows_what_is_generated_and_small_answers_count_little():
    measured = Pace()
    assert measured.share == 0.5
    for _ in range(20):
        measured.ended(2, 2)  # a probe
    assert measured.share == pytest.approx(0.5, abs=0.03)
    for _ in range(400):
        measured.ended(64, 256)
    assert measured.share == pytest.approx(0.25, abs=0.01)
    for _ in range(800):
        measured.ended(256, 256)
    assert measured.share == pytest.approx(1, abs=0.02)

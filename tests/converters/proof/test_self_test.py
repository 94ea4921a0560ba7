"""The limits can fail: every fault, function and precision, and magnitudes from 1e-8 to 1e6."""

import numpy as np
import pytest

from converters.proof.closeness import beyond_noise, departure, misplaced, noise_of, spread_of
from converters.proof.parity import score_spread_checks, spread_checks
from converters.proof.self_test import answers_self_test, faulty_answers, is_constant
from converters.proof.tolerance import SHARES

PRECISIONS = list(SHARES)
RANDOM = np.random.default_rng(3)


def _softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


FUNCTIONS = {"none": lambda logits: logits, "softmax": _softmax, "sigmoid": _sigmoid}
NOISE = {
    precision: shares.lost / (2 if shares.resolution else 5)
    for precision, (shares, _) in SHARES.items()
}


def _checks(precision, original, function="none"):
    shares, rows = SHARES[precision][0], [f"row {i}" for i in range(len(original))]
    return lambda actual: score_spread_checks("t", actual, original, function, shares, rows)


def _failed(checks):
    return [check.line() for check in checks if not check.passed]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("scale", [1e-8, 1e-6, 1e-3, 1, 1e6])
@pytest.mark.parametrize("columns", [1, 2, 5, 300])
def test_every_fault_in_plain_numbers_is_detected(precision, scale, columns):
    original = (scale * RANDOM.standard_normal((24, columns))).astype(np.float32)
    (check,) = answers_self_test(_checks(precision, original), original)
    assert check.passed, check.worst
    assert "would pass" not in check.worst
    detected = check.worst.partition("detected: ")[2].partition(";")[0].split(", ")
    assert len(detected) == (6 if columns == 1 else 7)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("function", ["softmax", "sigmoid"])
@pytest.mark.parametrize("columns", [2, 3, 40])
def test_every_fault_in_probabilities_is_detected(precision, function, columns):
    original = FUNCTIONS[function](2 * RANDOM.standard_normal((24, columns))).astype(np.float32)
    (check,) = answers_self_test(_checks(precision, original, function), original, function)
    assert check.passed, check.worst


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("samples", [3, 1000])
def test_answers_of_one_number_are_planted_by_their_share(precision, samples):
    """Two of a thousand samples swapped are no fault that a limit on all of them could detect."""
    original = _sigmoid(RANDOM.standard_normal((samples, 1))).astype(np.float32)
    (check,) = answers_self_test(_checks(precision, original, "sigmoid"), original, "sigmoid")
    assert check.passed, check.worst


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("function", list(FUNCTIONS))
@pytest.mark.parametrize("scale", [1e-6, 1, 1e4])
@pytest.mark.parametrize("columns", [2, 40])
def test_rounding_passes(precision, function, scale, columns):
    """Errors of the same size in every logit, like those of rounding."""
    size = scale if function == "none" else 2
    logits = size * RANDOM.standard_normal((60, columns))
    noise = NOISE[precision] * size * RANDOM.standard_normal(logits.shape)
    original, actual = (FUNCTIONS[function](x).astype(np.float32) for x in (logits, logits + noise))
    assert _failed(_checks(precision, original, function)(actual)) == []


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "fault",
    [
        lambda y: y * 0,
        lambda y: -y,
        lambda y: y * 10,
        lambda y: y * 1000,
        lambda y: y + 2 * y.std(),
        lambda y: np.full_like(y, y.mean()),
    ],
)
def test_faults_of_tiny_numbers_are_detected(precision, fault):
    """Outputs of one element of 1e-6: each of these faults once passed an absolute limit."""
    original = (1e-6 * RANDOM.standard_normal((24, 1))).astype(np.float32)
    assert _failed(_checks(precision, original)(fault(original).astype(np.float32)))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_half_and_one_minus_p_are_detected(precision):
    original = _sigmoid(RANDOM.standard_normal((32, 1))).astype(np.float32)
    for actual in (np.full_like(original, 0.5), 1 - original):
        assert _failed(_checks(precision, original, "sigmoid")(actual))


def test_two_labels_that_hardly_move_must_not_be_swapped():
    original = RANDOM.standard_normal((60, 200)) * np.where(np.arange(200) < 2, 0.05, 1)
    actual = original + 0.2 * RANDOM.standard_normal(original.shape) * 0.05
    assert len(misplaced(actual, original)) == 0
    actual[:, [0, 1]] = actual[:, [1, 0]]
    assert misplaced(actual, original).tolist() == [0, 1]


def test_one_answer_of_1e30_does_not_hide_the_others():
    original = RANDOM.standard_normal((24, 1))
    original[5] = 1e30
    actual = original.copy()
    actual[:5] *= -1
    assert departure(actual, original).largest > 1


def test_a_few_units_of_rounding_are_no_error():
    original = (2.5e5 + RANDOM.standard_normal((24, 1))).astype(np.float32)
    actual = np.nextafter(original, np.float32(np.inf))
    assert _failed(_checks("fp32", original)(actual)) == []
    assert _failed(_checks("fp32", original)(original + np.float32(0.5)))


def test_units_of_rounding_do_not_count_as_movement():
    """With a large offset, what rounding does to the gain does not count."""
    original = (1e6 + 100 * RANDOM.standard_normal((24, 1))).astype(np.float32)
    step = np.where(original > np.median(original), np.float32(0.25), np.float32(-0.25))
    assert _failed(_checks("fp32", original)(original + step)) == []


def _computed(weights, rows, dtype):
    """Two layers, summed sequentially as a single thread of one kernel does."""
    first, second = weights
    hidden = np.add.accumulate(rows[:, :, None].astype(dtype) * first.astype(dtype), axis=1)[:, -1]
    hidden = np.maximum(hidden, 0)
    return np.add.accumulate(hidden[:, :, None] * second.astype(dtype), axis=1)[:, -1]


@pytest.fixture
def noisy():
    """The answers FP32 [40, 5] of an original that hardly moves, of another correct run, and the
    noise."""
    return _noisy(np.random.default_rng(3))


def _noisy(random):
    weights = random.standard_normal((64, 128)) / 8, random.standard_normal((128, 5)) / 11
    rows = random.standard_normal((1, 64)) + 2e-3 * random.standard_normal((40, 64))
    order = random.permutation(64), random.permutation(128)
    permuted = weights[0][order[0]][:, order[1]], weights[1][order[1]]
    # Both have the same weights and rows in FP32.
    weights, permuted = ([w.astype(np.float32) for w in pair] for pair in (weights, permuted))
    rows = rows.astype(np.float32)
    original = _computed(weights, rows, np.float32)
    again = _computed(permuted, rows[:, order[0]], np.float32)
    positions = list(range(0, 40, 2))
    exact = _computed(weights, rows[positions], np.float64)
    return original, again, noise_of(original, exact, positions)


def test_a_correct_run_of_answers_that_hardly_move_passes(noisy):
    """4e-7 of 0.3 is rounding, and 4e-4 of the spread of the answers."""
    original, again, noise = noisy
    assert _failed(_checks("fp32", original)(again))
    assert _failed(_checks("fp32", original)(beyond_noise(again, original, noise))) == []
    (check,) = answers_self_test(
        lambda actual: _checks("fp32", original)(beyond_noise(actual, original, noise)), original
    )
    assert check.passed, check.worst


@pytest.mark.parametrize("factor", [1.01, 0.99])
def test_noise_hides_no_fault_of_what_hardly_moves(noisy, factor):
    original, again, noise = noisy
    middle = np.median(again, axis=0)
    actual = (middle + factor * (again - middle)).astype(np.float32)
    assert _failed(_checks("fp32", original)(beyond_noise(actual, original, noise)))


def test_another_function_in_fp64_is_not_noise():
    original = RANDOM.standard_normal((40, 3)).astype(np.float32)
    exact = original.astype(np.float64) + np.array([0.0, 1e-7, 1e-1])
    noise = noise_of(original, exact, range(40))
    assert noise[0] == 0
    assert noise[1] == pytest.approx(4e-7)
    assert noise[2] == 0
    assert (noise_of(original, np.full_like(exact, np.nan), range(40)) == 0).all()


def test_one_minus_p_lies_on_the_grid_of_one():
    p = _sigmoid(RANDOM.uniform(14, 16, (24, 1))).astype(np.float32)
    both = np.concatenate([1 - p, p], axis=1)
    one_unit = np.concatenate([both[:, :1] + np.float32(2.0**-24), both[:, 1:]], axis=1)
    assert (spread_of(both).floor > 2.0**-24).all()
    assert departure(one_unit, both).largest == 0


def test_a_constant_original_is_measured_from_zero_and_reported():
    original = np.full((24, 3), 0.25, dtype=np.float32)
    original[3] += np.float32(2e-8)
    assert is_constant(original)
    for precision in PRECISIONS:
        for actual in (original * 0, -original, original * 2):
            assert _failed(_checks(precision, original)(actual))


def test_what_fp32_has_no_numbers_for_is_no_error():
    """The probability of a component that no sample is near to: 1e-87, served as 0."""
    original = _softmax(RANDOM.standard_normal((24, 3)) - np.array([0, 0, 200]))
    actual = original.copy()
    actual[:, 2] = 0
    assert _failed(_checks("fp32", original)(actual)) == []
    assert _failed(_checks("fp32", original)(actual + np.array([0, 0, 1e-3])))


def test_flags_are_not_rounding():
    original = np.repeat([[0.0], [1.0]], 12, axis=0).astype(np.float32)
    assert spread_of(original).floor.max() < 1e-5
    assert _failed(_checks("fp32", original)(1 - original))


def test_nan_and_infinity_pass_nothing():
    original = RANDOM.standard_normal((24, 2))
    for value in (np.nan, np.inf):
        actual = original.copy()
        actual[7, 1] = value
        checks = spread_checks("t", actual, original, SHARES["int8-static"][0], [""] * 24)
        assert [check.passed for check in checks[:4]] == [False] * 4


def test_faults_of_probabilities_are_still_distributions():
    original = _softmax(RANDOM.standard_normal((8, 4)))
    for _, answers in faulty_answers(original, "softmax"):
        assert np.allclose(answers.sum(axis=1), 1)

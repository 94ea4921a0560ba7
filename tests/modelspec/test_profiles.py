"""Optimisation profiles are arithmetic on a spec: every case is worked out by hand."""

import pytest

from modelspec.hardware import engine_of
from modelspec.model import TensorSpec
from modelspec.profiles import (
    ShapeRange,
    batch_sizes,
    profile_for,
    profiles,
    profiles_of,
)

IDS = TensorSpec("input_ids", "INT64", (-1,))
MASK = TensorSpec("attention_mask", "INT64", (-1,))
PIXELS = TensorSpec("pixels", "FP32", (3, 224, 224))


def test_an_image_has_one_profile_and_only_its_batch_varies():
    (profile,) = profiles([PIXELS], batch_sizes(16))
    assert profile == {
        "pixels": ShapeRange((1, 3, 224, 224), (8, 3, 224, 224), (16, 3, 224, 224)),
    }


def test_each_length_bucket_is_a_profile_and_no_length_is_left_out():
    by_length = profiles([IDS, MASK], batch_sizes(64), (16, 32, 256))
    assert [profile["input_ids"] for profile in by_length] == [
        ShapeRange((1, 1), (8, 16), (64, 16)),
        ShapeRange((1, 17), (8, 32), (64, 32)),
        ShapeRange((1, 33), (8, 256), (64, 256)),
    ]
    assert all(profile["attention_mask"] == profile["input_ids"] for profile in by_length)
    for length in range(1, 257):
        shapes = {"input_ids": (3, length), "attention_mask": (3, length)}
        matches = [
            index
            for index, profile in enumerate(by_length)
            if profile["input_ids"].holds((3, length))
        ]
        assert matches == [profile_for(by_length, shapes)]


def test_fixed_axes_stay_fixed_beside_those_of_any_length():
    frames = TensorSpec("frames", "FP16", (-1, 80))
    scale = TensorSpec("scale", "FP32", ())
    (profile,) = profiles([frames, scale], (1, 2, 4), (100,))
    assert profile["frames"] == ShapeRange((1, 1, 80), (2, 100, 80), (4, 100, 80))
    assert profile["scale"] == ShapeRange((1,), (2,), (4,))


@pytest.mark.parametrize(
    ("most", "usual", "expected"), [(64, 8, (1, 8, 64)), (4, 8, (1, 4, 4)), (1, 8, (1, 1, 1))]
)
def test_the_usual_batch_is_never_above_the_largest(most, usual, expected):
    assert batch_sizes(most, usual) == expected


@pytest.mark.parametrize(("most", "usual"), [(0, 8), (-1, 8), (8, 0)])
def test_a_model_without_a_batch_axis_has_no_profiles(most, usual):
    with pytest.raises(ValueError, match="batches of 1 or more"):
        batch_sizes(most, usual)


@pytest.mark.parametrize(
    ("inputs", "lengths", "message"),
    [
        ([], (), "without inputs"),
        ([IDS, IDS], (16,), "named twice"),
        ([IDS], (), "may be of any length: say which"),
        ([PIXELS], (16,), "axes are all fixed"),
        ([IDS], (32, 16), "must be positive and ascending"),
        ([IDS], (16, 16), "must be positive and ascending"),
        ([IDS], (0, 16), "must be positive and ascending"),
        ([IDS], (-5,), "must be positive and ascending"),
        ([TensorSpec("text", "BYTES", (1,))], (), "is BYTES, and TensorRT takes FP32"),
        ([TensorSpec("age", "FP64", (1,))], (), "is FP64, and TensorRT takes FP32"),
        ([TensorSpec("ids", "INT64", (-1, 1024))], (2**20,), "elements"),
    ],
)
def test_invalid_arguments_are_refused_with_the_reason(inputs, lengths, message):
    with pytest.raises(ValueError, match=message):
        profiles(inputs, batch_sizes(64), lengths)


@pytest.mark.parametrize(
    "shapes", [((1, 4), (1, 3), (1, 5)), ((0,), (1,), (1,)), ((1,), (1, 1), (1,))]
)
def test_a_range_of_shapes_must_be_in_order(shapes):
    with pytest.raises(ValueError, match="not a range of shapes"):
        ShapeRange(*shapes)


def test_a_shape_beyond_every_profile_is_refused_with_the_largest():
    single = profiles([IDS], batch_sizes(4), (16,))
    for shape in ((5, 16), (4, 17), (4,), (4, 16, 1)):
        with pytest.raises(ValueError, match=r"no profile holds input_ids .*the largest is"):
            profile_for(single, {"input_ids": shape})


def test_our_own_pipelines_have_the_profiles_of_their_buckets():
    from ensembles.image_classification import PIPELINE as IMAGE_PIPELINE
    from ensembles.text_embedding import BUCKETS, MAX_BATCH_SIZE
    from ensembles.text_embedding import PIPELINE as TEXT_PIPELINE

    largest = [profile["input_ids"].most for profile in profiles_of(engine_of(TEXT_PIPELINE))]
    assert largest == [(MAX_BATCH_SIZE, bucket) for bucket in BUCKETS]
    assert len(profiles_of(engine_of(IMAGE_PIPELINE))) == 1

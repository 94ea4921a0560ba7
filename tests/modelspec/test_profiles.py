"""Optimisation profiles are arithmetic on a spec: every case by hand."""

import pytest

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


def test_a_image_has_one_profile_and_only_its_batch_varies():
    (found,) = profiles([PIXELS], batch_sizes(16))
    assert found == {
        "pixels": ShapeRange((1, 3, 224, 224), (8, 3, 224, 224), (16, 3, 224, 224)),
    }


def test_each_length_bucket_is_a_profile_and_no_length_is_left_out():
    found = profiles([IDS, MASK], batch_sizes(64), (16, 32, 256))
    assert [each["input_ids"] for each in found] == [
        ShapeRange((1, 1), (8, 16), (64, 16)),
        ShapeRange((1, 17), (8, 32), (64, 32)),
        ShapeRange((1, 33), (8, 256), (64, 256)),
    ]
    assert all(each["attention_mask"] == each["input_ids"] for each in found)
    for length in range(1, 257):
        shapes = {"input_ids": (3, length), "attention_mask": (3, length)}
        holding = [n for n, each in enumerate(found) if each["input_ids"].holds((3, length))]
        assert holding == [profile_for(found, shapes)]


def test_fixed_axes_stay_fixed_beside_those_of_any_length():
    frames = TensorSpec("frames", "FP16", (-1, 80))
    scale = TensorSpec("scale", "FP32", ())
    (found,) = profiles([frames, scale], (1, 2, 4), (100,))
    assert found["frames"] == ShapeRange((1, 1, 80), (2, 100, 80), (4, 100, 80))
    assert found["scale"] == ShapeRange((1,), (2,), (4,))


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
    ("inputs", "lengths", "said"),
    [
        ([], (), "without inputs"),
        ([IDS, IDS], (16,), "named twice"),
        ([IDS], (), "may be of any length: say which"),
        ([PIXELS], (16,), "axes are all fixed"),
        ([IDS], (32, 16), "must be positive and ascend"),
        ([IDS], (16, 16), "must be positive and ascend"),
        ([IDS], (0, 16), "must be positive and ascend"),
        ([IDS], (-5,), "must be positive and ascend"),
        ([TensorSpec("text", "BYTES", (1,))], (), "is BYTES, and TensorRT takes FP32"),
        ([TensorSpec("age", "FP64", (1,))], (), "is FP64, and TensorRT takes FP32"),
        ([TensorSpec("ids", "INT64", (-1, 1024))], (2**20,), "elements"),
    ],
)
def test_nonsense_is_refused_with_its_reason(inputs, lengths, said):
    with pytest.raises(ValueError, match=said):
        profiles(inputs, batch_sizes(64), lengths)


@pytest.mark.parametrize(
    "shapes", [((1, 4), (1, 3), (1, 5)), ((0,), (1,), (1,)), ((1,), (1, 1), (1,))]
)
def test_a_range_that_is_none_cannot_be_made(shapes):
    with pytest.raises(ValueError, match="no range of shapes"):
        ShapeRange(*shapes)


def test_a_shape_beyond_every_profile_is_refused_with_the_largest():
    found = profiles([IDS], batch_sizes(4), (16,))
    for shape in ((5, 16), (4, 17), (4,), (4, 16, 1)):
        with pytest.raises(ValueError, match=r"no profile holds input_ids .*the largest is"):
            profile_for(found, {"input_ids": shape})


def test_our_own_pipelines_have_the_profiles_of_their_buckets():
    from ensembles.image_classification import PIPELINE as PICTURES
    from ensembles.text_embedding import BUCKETS, MAX_BATCH_SIZE, PIPELINE

    engine = next(spec for spec in PIPELINE.members if spec.backend == "onnxruntime")
    found = profiles_of(engine)
    assert [each["input_ids"].most for each in found] == [(MAX_BATCH_SIZE, b) for b in BUCKETS]
    engine = next(spec for spec in PICTURES.members if spec.backend == "onnxruntime")
    assert len(profiles_of(engine)) == 1

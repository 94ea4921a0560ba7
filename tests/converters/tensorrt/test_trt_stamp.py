"""A plan counts only with its own stamp, and only on the machine of its stamp."""

import json
from dataclasses import replace

import pytest

from converters.tensorrt import stamp
from converters.tensorrt.available import Gpu
from modelspec.model import TensorSpec
from modelspec.profiles import batch_sizes, profiles

H100 = Gpu("NVIDIA H100", "9.0", "580.65")
PLAN = b"machine code"


@pytest.fixture
def target(tmp_path):
    onnx = tmp_path / "model.onnx"
    onnx.write_bytes(b"a graph")
    shapes = profiles([TensorSpec("ids", "INT64", (-1,))], batch_sizes(4), (8, 16))
    return stamp.stamp_of(onnx, H100, "11.4.0.106", shapes)


@pytest.fixture
def folder(tmp_path, target):
    path = tmp_path / "engine"
    path.mkdir()
    stamp.write(path, PLAN, target)
    return path


def test_what_was_written_is_read_and_needs_no_building(folder, target):
    assert stamp.read(folder) == target
    assert stamp.why_build(folder, target) == ""
    fields = json.loads((folder / "model.plan.json").read_text())
    assert fields["compute_capability"] == "9.0" and fields["driver"] == "580.65"
    assert fields["profiles"][1] == {"ids": [[1, 9], [4, 16], [4, 16]]}


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("tensorrt", "10.13.3.9", "tensorrt 11.4.0.106, here 10.13.3.9"),
        ("compute_capability", "8.9", "compute_capability 9.0, here 8.9"),
        ("driver", "570.10", "driver 580.65, here 570.10"),
        ("gpu", "NVIDIA L4", "gpu NVIDIA H100, here NVIDIA L4"),
        ("onnx_sha256", "0" * 64, "another onnx_sha256"),
        ("profiles", [], "another profiles"),
    ],
)
def test_any_difference_is_a_reason_to_build_again(folder, target, field, value, expected):
    assert stamp.why_build(folder, replace(target, **{field: value})) == expected


def test_all_differences_are_reported(folder, target):
    other = replace(target, gpu="NVIDIA L4", compute_capability="8.9")
    assert stamp.why_build(folder, other).count(";") == 1


@pytest.mark.parametrize(
    "break_it",
    [
        lambda folder: (folder / "model.plan").unlink(),
        lambda folder: (folder / "model.plan").write_bytes(PLAN[:-1]),
        lambda folder: (folder / "model.plan.json").unlink(),
        lambda folder: (folder / "model.plan.json").write_text("{"),
        lambda folder: (folder / "model.plan.json").write_text("[]"),
        lambda folder: (folder / "model.plan.json").write_text('{"plan_sha256": "0"}'),
    ],
)
def test_an_incomplete_or_foreign_plan_counts_as_none(folder, target, break_it):
    break_it(folder)
    assert stamp.read(folder) is None
    assert stamp.why_build(folder, target) == "there is no plan with its stamp"


def test_a_disk_that_fills_up_leaves_no_plan_that_counts(folder, target, monkeypatch):
    """The new plan is there, its stamp is not: the old stamp must not count for it."""
    written = []

    def full(path, data, mode=0o644):
        if path.name == "model.plan.json":
            raise OSError(28, "No space left on device")
        written.append(path.name)
        path.write_bytes(data)

    monkeypatch.setattr(stamp, "atomic_write", full)
    with pytest.raises(OSError, match="No space"):
        stamp.write(folder, b"another plan", target)
    assert written == ["model.plan"] and stamp.read(folder) is None

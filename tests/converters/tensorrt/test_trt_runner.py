"""A plan gets the same inputs as the graph: the runner, and the same proofs through it.

The engine is a fake (see fake_trt.py); docs/gpu.md says what has run on a real GPU.
"""

import importlib.util

import numpy as np
import pytest

from converters.conversion import ConversionOptions, convert
from converters.errors import EngineFailed, ProofFailed
from converters.proof.record import Record
from converters.task import ConversionRequest
from converters.tensorrt.device import Device
from converters.tensorrt.engine import FILES, build_engine, stamp_here, unavailable_reason
from modelspec.model import Instances, ModelSpec, TensorSpec
from tests.converters.small_task import Doubling
from tests.converters.tensorrt import fake_trt
from tests.converters.tensorrt.test_onnx2trt import _build
from tests.converters.tensorrt.trt_machine import child_environment, machine, plant_gpu, write_graph

__all__ = ["machine"]
THREE = TensorSpec("x", "FP32", (3,))
SPEC = ModelSpec("twice_onnx", "onnxruntime", 8, (THREE,), (THREE,), Instances())


def _open(tmp_path):
    from converters.tensorrt.runner import TrtRunner

    assert _build(write_graph(tmp_path / "graph.onnx"), tmp_path / "engine") == 0
    return TrtRunner(tmp_path / "engine" / "model.plan", fake_trt.HostDevice())


def test_it_answers_as_onnx_runtime_does(machine, tmp_path):
    runner = _open(tmp_path)
    assert (runner.inputs, runner.outputs) == (["ids"], ["doubled"])
    for shape in ((1, 1), (4, 8), (3, 9), (2, 16), (1, 4)):
        ids = np.arange(np.prod(shape), dtype=np.int64).reshape(shape)
        (doubled,) = runner.run(None, {"ids": ids})
        np.testing.assert_array_equal(doubled, ids * 2)
        np.testing.assert_array_equal(runner.run(["doubled"], {"ids": ids})[0], ids * 2)
    assert machine.seen["switches"] == [1, 0]  # only when another profile is needed
    assert not runner._device.allocated


def test_an_array_that_is_not_contiguous_is_sent_as_it_reads(machine, tmp_path):
    ids = np.arange(32, dtype=np.int64).reshape(8, 4).T
    (doubled,) = _open(tmp_path).run(None, {"ids": ids})
    np.testing.assert_array_equal(doubled, ids * 2)


def test_a_batch_above_the_engines_largest_is_run_in_parts(machine, tmp_path):
    runner = _open(tmp_path)
    ids = np.arange(11 * 8, dtype=np.int64).reshape(11, 8)
    np.testing.assert_array_equal(runner.run(None, {"ids": ids})[0], ids * 2)


def test_inputs_outside_all_profiles_or_of_another_dtype_are_refused(machine, tmp_path):
    runner = _open(tmp_path)
    with pytest.raises(ValueError, match=r"no profile holds ids \[4, 17\]"):
        runner.run(None, {"ids": np.zeros((4, 17), np.int64)})
    with pytest.raises(EngineFailed, match="ids is int32, but the engine takes int64"):
        runner.run(None, {"ids": np.zeros((4, 8), np.int32)})
    machine.faults["axis"] = -1
    with pytest.raises(EngineFailed, match="depends on values"):
        runner.run(None, {"ids": np.zeros((4, 8), np.int64)})


def test_a_plan_of_another_tensorrt_is_not_loaded(machine, tmp_path):
    from converters.tensorrt.runner import TrtRunner

    (tmp_path / "model.plan").write_bytes(b"of another release")
    with pytest.raises(EngineFailed, match="the plan was built by another TensorRT"):
        TrtRunner(tmp_path / "model.plan", fake_trt.HostDevice())


def test_without_a_driver_the_device_says_so():
    """The real package cuda-bindings: this machine has no driver."""
    assert importlib.util.find_spec("cuda.bindings")
    with pytest.raises(Exception, match=r"NVIDIA driver|no CUDA|NO_DEVICE"):
        Device()


def test_an_error_of_the_driver_is_named():
    class Code:
        name = "CUDA_ERROR_OUT_OF_MEMORY"

        def __int__(self):
            return 2

    with pytest.raises(EngineFailed, match="CUDA_ERROR_OUT_OF_MEMORY"):
        Device._call(None, (Code(), 0))


@pytest.fixture
def converted(machine, tmp_path, monkeypatch):
    """A small task's proved graph, on a machine whose child processes see the fakes too."""
    for name, value in child_environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    import converters.tensorrt.runner

    monkeypatch.setattr(converters.tensorrt.runner, "Device", fake_trt.HostDevice)
    (tmp_path / "weights.bin").write_bytes(b"some weights")
    return convert(
        Doubling(ConversionRequest("twice", str(tmp_path / "weights.bin"))),
        ConversionOptions(),
        str,
    )


def test_an_engine_is_built_proved_and_cached_with_both_proofs(converted):
    progress = []
    engine = build_engine(converted, SPEC, progress.append)
    assert set(engine.files()) == set(FILES) and all(p.is_file() for p in engine.files().values())
    assert [proof.subject for proof in engine.record.proofs] == [
        "twice: the graph",
        "twice: the TensorRT engine on NVIDIA H100 80GB HBM3",
    ]
    graph, plan = engine.record.proofs
    assert (graph.note, plan.note) == (
        "",
        "Layers were not compared: this engine does not show them; its answers were.",
    )
    assert plan.note in (engine.folder / "proof.md").read_text()
    assert engine.record.tools["tensorrt"] == fake_trt.VERSION
    assert Record.load(engine.folder / "proof.json") == engine.record
    assert len(progress) == 2
    assert build_engine(converted, SPEC, progress.append).folder == engine.folder
    assert len(progress) == 2, "it came from the cache"


def test_another_gpu_is_another_engine(converted, tmp_path):
    first = build_engine(converted, SPEC, str)
    assert unavailable_reason(first.folder) == ""
    plant_gpu(tmp_path / "bin", "NVIDIA L4, 8.9, 580.65.06")
    assert "compute_capability 9.0, here 8.9" in unavailable_reason(first.folder)
    second = build_engine(converted, SPEC, str)
    assert second.folder != first.folder
    assert unavailable_reason(second.folder) == ""


def test_an_engine_with_wrong_answers_is_refused_and_not_cached(converted, monkeypatch):
    run = fake_trt._Context.execute_async_v3

    def wrong(self, stream):
        success = run(self, stream)
        name = next(n for n in self._addresses if n not in self._shapes)
        self._array(name, next(iter(self._shapes.values())))[0] += 0.01
        return success

    monkeypatch.setattr(fake_trt._Context, "execute_async_v3", wrong)
    folder = converted.engine.parent.parent
    before = sorted(folder.iterdir())
    with pytest.raises(ProofFailed, match=r"the TensorRT engine on NVIDIA H100.*FAIL parity"):
        build_engine(converted, SPEC, str)
    assert sorted(folder.iterdir()) == before


def test_a_build_with_an_invalid_spec_or_graph_says_so(converted):
    texts = ModelSpec("twice_onnx", "onnxruntime", 0, (THREE,), (THREE,))
    with pytest.raises(
        EngineFailed, match="twice_onnx cannot have a TensorRT engine: a profile needs"
    ):
        stamp_here(converted.engine, texts)
    converted.engine.write_bytes(converted.engine.read_bytes()[:40])
    with pytest.raises(Exception, match="is not an ONNX file"):
        build_engine(converted, SPEC, str)

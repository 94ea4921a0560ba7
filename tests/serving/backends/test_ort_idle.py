"""Which requests run on more than one core, and with which results."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parents[3] / "serving" / "backends" / "onnxruntime"))

import ort_idle
from ort_batch import Runner
from ort_graph import Graph, ModelRefused
from ort_session import CPU, open_session, operator_names

LARGE_ENOUGH = ort_idle.SMALLEST


def config(**parameters: str):
    values = {name: {"string_value": value} for name, value in parameters.items()}
    return {"name": "m", "max_batch_size": 4, "input": [], "output": [], "parameters": values}


@pytest.fixture(name="machine")
def _machine(tmp_path, monkeypatch):
    """Four cores, of which one runs something, and a file that is large enough."""
    loadavg, cpu_max, file = (tmp_path / name for name in ("loadavg", "cpu.max", "model.onnx"))
    loadavg.write_text("0.20 0.18 0.12 1/80 11206\n")
    cpu_max.write_text("max 100000\n")
    with file.open("wb") as stream:
        stream.truncate(LARGE_ENOUGH)
    monkeypatch.setattr(ort_idle, "LOADAVG", loadavg)
    monkeypatch.setattr(ort_idle, "CPU_MAX", cpu_max)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3})
    return SimpleNamespace(loadavg=loadavg, cpu_max=cpu_max, file=file)


@pytest.mark.parametrize(
    ("parameters", "operators", "threads"),
    [
        ({"intra_op_thread_count": "1"}, {"Add", "MatMul"}, 2),
        ({"intra_op_thread_count": "2"}, {"Add", "MatMul"}, 0),
        ({}, {"MatMul"}, 0),  # all cores in any case
        ({"intra_op_thread_count": "1"}, {"Add"}, 0),
        ({"intra_op_thread_count": "1"}, {"MatMul", "TreeEnsembleRegressor"}, 0),
        ({"intra_op_thread_count": "1"}, {"MatMul", "ScatterND"}, 0),
        ({"intra_op_thread_count": "1"}, {"MatMul", "If"}, 0),
        ({"intra_op_thread_count": "1"}, {"MatMul", "MyOwn"}, 0),
        ({"intra_op_thread_count": "1", "idle_thread_count": "1"}, {"MatMul"}, 0),
        ({"intra_op_thread_count": "1", "idle_thread_count": "0"}, {"MatMul"}, 0),
        ({"intra_op_thread_count": "1", "idle_thread_count": "4"}, {"Add"}, 4),
        ({"intra_op_thread_count": "2", "idle_thread_count": "3"}, {"MatMul"}, 3),
        ({"intra_op_thread_count": "2", "idle_thread_count": "2"}, {"MatMul"}, 0),
        ({"intra_op_thread_count": "1", "idle_thread_count": "5"}, {"MatMul"}, 0),
        ({"intra_op_thread_count": "0", "idle_thread_count": "2"}, {"MatMul"}, 0),
    ],
)
def test_the_config_says_with_how_many_threads(machine, parameters, operators, threads):
    assert ort_idle.idle_threads(config(**parameters), machine.file, operators) == threads


@pytest.mark.parametrize("size", [LARGE_ENOUGH - 1, ort_idle.LARGEST + 1])
def test_small_and_large_graphs_have_one_session_unless_the_config_asks(machine, size):
    with machine.file.open("wb") as stream:
        stream.truncate(size)
    one = {"intra_op_thread_count": "1"}
    assert ort_idle.idle_threads(config(**one), machine.file, {"MatMul"}) == 0
    asked = config(**one, idle_thread_count="2")
    assert ort_idle.idle_threads(asked, machine.file, {"MatMul"}) == 2


def test_what_is_no_number_is_refused(machine):
    asked = config(intra_op_thread_count="1", idle_thread_count="two")
    with pytest.raises(ModelRefused, match="'idle_thread_count' cannot be 'two'"):
        ort_idle.idle_threads(asked, machine.file, {"MatMul"})


@pytest.mark.parametrize(
    ("cpu_max", "cores"), [("max 100000", 4), ("200000 100000", 2), ("150000 100000", 1), ("", 4)]
)
def test_a_container_has_the_cores_of_its_quota(machine, cpu_max, cores):
    machine.cpu_max.write_text(cpu_max)
    assert ort_idle.cores() == cores


@pytest.mark.parametrize(("running", "idle"), [(1, True), (3, True), (4, False), (9, False)])
def test_a_core_is_idle_while_few_threads_run(machine, running, idle):
    machine.loadavg.write_text(f"0.20 0.18 0.12 {running}/80 11206\n")
    assert bool(ort_idle.IdleCores(2)) is idle


def test_whoever_handed_the_request_over_may_still_run(machine, monkeypatch):
    machine.loadavg.write_text("0.20 0.18 0.12 4/80 11206\n")
    ended = "0.20 0.18 0.12 3/80 11206\n"
    monkeypatch.setattr(ort_idle.time, "sleep", lambda s: machine.loadavg.write_text(ended))
    assert ort_idle.IdleCores(2)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


class Session:
    """A real session, which notes that it ran."""

    def __init__(self, session: ort.InferenceSession, name: str, ran: list[str]) -> None:
        self._session, self._name, self._ran = session, name, ran

    def run(self, *arguments):
        self._ran.append(self._name)
        return self._session.run(*arguments)


def graph_file(folder: Path) -> Path:
    weights = np.random.default_rng(5).standard_normal((64, 48)).astype(np.float32)
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width])
        for name, width in (("x", 64), ("y", 48))
    ]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    tensors = [numpy_helper.from_array(weights, "w")]
    graph = helper.make_graph([node], "product", values[:1], values[1:], tensors)
    file = folder / "model.onnx"
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), file)
    return file


def test_one_caller_is_answered_by_more_threads_and_many_are_not(tmp_path, monkeypatch):
    clock, ran = Clock(), []
    monkeypatch.setattr("ort_batch.time", clock)
    full = config(intra_op_thread_count="1")
    full["input"] = [{"name": "x", "data_type": "TYPE_FP32", "dims": ["64"]}]
    full["output"] = [{"name": "y", "data_type": "TYPE_FP32", "dims": ["48"]}]
    full = json.loads(json.dumps(full))
    file = graph_file(tmp_path)
    sessions = [open_session(full, file, [(CPU, {})], pytest.fail, threads) for threads in (0, 2)]
    assert operator_names(sessions[0]) == {"MatMul"}
    idle = [True]
    one, two = (Session(s, n, ran) for s, n in zip(sessions, ("one", "two"), strict=True))
    is_idle = type("Idle", (), {"__bool__": lambda self: idle[0]})()
    runner = Runner(full, Graph.read(sessions[0]), one, (is_idle, two))
    feeds = {"x": np.ones((3, 64), np.float32)}

    def answer(after_s: float) -> str:
        """Which session answers, so long after the last one; each takes 10 ms."""
        clock.now += after_s
        with runner.answering():
            runner._run_once(feeds, frozenset({"y"}), 3)
            clock.now += 0.01
        return ran[-1]

    assert [answer(1.0), answer(0.005), answer(0.001), answer(0.001)] == [
        "two",
        "two",
        "one",
        "one",
    ]
    assert answer(0.003) == "two"
    idle[0] = False
    assert answer(1.0) == "one"


def test_the_results_are_the_same_to_the_bit(tmp_path):
    file = graph_file(tmp_path)
    feed = {"x": np.random.default_rng(7).standard_normal((33, 64)).astype(np.float32)}
    full = config(intra_op_thread_count="1")
    one, two = (
        open_session(full, file, [(CPU, {})], pytest.fail, threads).run(None, feed)[0]
        for threads in (0, 2)
    )
    np.testing.assert_array_equal(one, two)

"""The smallest possible task: y = factor * x. Its attributes plant faults."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from converters.proof.checks import worst_difference
from converters.proof.parity import lowest_cosine, mean_difference
from converters.proof.runner import onnx_runner
from converters.task import Task
from modelspec.golden import Golden

SAMPLES = np.arange(1, 13, dtype=np.float32).reshape(4, 3)


class Doubling(Task):
    """The original doubles; the graph multiplies by ``graph_factor``."""

    name = "tensors"

    def __init__(self, request, graph_factor=2.0, fails_in=""):
        super().__init__(request)
        self.graph_factor, self.fails_in = graph_factor, fails_in
        self.asked = 0

    def files(self):
        return [Path(self.request.source)]

    def settings(self):
        return f"{self.graph_factor}"

    def metadata(self):
        return {"width": 3}

    def write_steps(self, folder):
        (folder / "pre" / "note.txt").write_text("carried over")

    def export(self, target):
        factor = helper.make_tensor("factor", TensorProto.FLOAT, [], [self.graph_factor])
        graph = helper.make_graph(
            [helper.make_node("Mul", ["x", "factor"], ["y"])],
            "doubling",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
            [factor],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        onnx.save(model, target)

    def ask(self, folder, report):
        self.asked += 1
        if self.fails_in == "ask":
            raise KeyboardInterrupt
        return {"x": SAMPLES, "y": SAMPLES * 2}

    def feeds(self, reference):
        yield {"x": SAMPLES}

    def prove_graph(self, engine, reference, runner=onnx_runner):
        session = runner(engine)
        actual = session.run(None, {"x": reference.outputs["x"]})[0]
        expected, tolerance = reference.outputs["y"], reference.tolerance
        names = [f"row {index}" for index in range(len(actual))]
        return [
            worst_difference("parity", actual, expected, tolerance.difference, names),
            mean_difference("mean", actual, expected, tolerance.mean),
            lowest_cosine("cosine", actual, expected, tolerance.cosine, names),
        ]

    def golden(self, reference):
        return Golden({"x": [1, 2, 3]}, {"y": [2, 4, 6]}, 1e-3)

    def prove_served(self, address, reference):
        return []

"""torch.export and AOTInductor, over the real ones: what is written, and what is refused."""

import re

import numpy as np
import pytest
import torch

from converters.errors import ConversionError, ExportFailed
from converters.task import ConversionRequest, TorchModule
from converters.tasks.tensors.task import Tensors
from converters.torch_export.engine import require_torch_module
from converters.torch_export.program import export_program, write_program
from converters.torch_export.runner import TorchRunner
from converters.torch_export.stamp import Stamp, cpu_features
from tests.converters.tasks.test_tensors import MODULE, linear


class Words(torch.nn.Module):
    """Ids and a mask [n, length] -> [n, 3], and [n, length, 3]."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.positions = torch.nn.Embedding(50, 3), torch.nn.Embedding(12, 3)

    def forward(self, ids, mask):
        vectors = (self.table(ids) + self.positions.weight[: ids.shape[1]]) * mask[..., None]
        return vectors.sum(1), vectors


class Branching(torch.nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


class Baked(torch.nn.Module):
    def forward(self, x):
        return x.reshape(2, 4) * 2


def words() -> TorchModule:
    example = {name: torch.ones(2, 9, dtype=torch.int64) for name in ("ids", "mask")}
    return TorchModule(Words().eval(), example, (0, 1), ("vector", "vectors"))


def _plain(module):
    return TorchModule(module, {"x": torch.ones(2, 4)}, (0,), ("y",))


def _written(folder, device="cpu"):
    module, messages = words(), []
    stamp = write_program(
        export_program(module), module, device, folder / "model.pt2", messages.append
    )
    return stamp, messages


def _as_the_original(file):
    rng = np.random.default_rng(0)
    runner = TorchRunner(file)
    for rows, length in ((1, 1), (1, 5), (3, 12), (7, 2)):
        feed = {
            "ids": rng.integers(0, 50, (rows, length)),
            "mask": rng.integers(0, 2, (rows, length)),
        }
        with torch.inference_mode():
            expected = Words().eval()(*(torch.from_numpy(values) for values in feed.values()))
        for actual, output in zip(runner.run(None, feed), expected, strict=True):
            assert actual == pytest.approx(output.numpy(), abs=1e-6)
        (alone,) = runner.run(["vectors"], feed)
        assert alone.shape == (rows, length, 3)


def test_a_compiled_program_says_what_it_is_bound_to_and_computes_what_the_module_does(tmp_path):
    stamp, messages = _written(tmp_path)
    assert not messages
    assert stamp == Stamp.read(tmp_path / "model.pt2")
    assert (stamp.torch, stamp.is_compiled, stamp.device) == (torch.__version__, True, "cpu")
    assert stamp.cpu_features == cpu_features()
    assert [tensor["name"] for tensor in stamp.inputs] == ["ids", "mask"]
    rows, length = stamp.inputs[0]["axes"]
    assert stamp.inputs[1] == {"name": "mask", "type": "tensor(int64)", "axes": [rows, length]}
    assert stamp.outputs == (
        {"name": "vector", "type": "tensor(float)", "axes": [rows, 3]},
        {"name": "vectors", "type": "tensor(float)", "axes": [rows, length, 3]},
    )
    assert stamp.longest == {length: 12}
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]
    _as_the_original(tmp_path / "model.pt2")


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        ("no-such-compiler", r"needs a C\+\+ compiler, and there is no no-such-compiler \(Debian"),
        ("false", "AOTInductor could not compile the model"),
    ],
)
def test_without_a_compiler_that_works_the_program_is_served_as_it_is(
    compiler, reason, tmp_path, monkeypatch
):
    monkeypatch.setenv("CXX", compiler)
    stamp, messages = _written(tmp_path)
    (message,) = messages
    assert re.search(reason, message)
    assert "The exported program is served as it is" in message
    assert not stamp.is_compiled
    assert stamp.cpu_features == ()
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]
    _as_the_original(tmp_path / "model.pt2")


@pytest.mark.parametrize("module", [Branching(), Baked()], ids=["branching", "baked"])
def test_a_module_that_torch_export_refuses_is_named_with_what_to_do(module):
    with pytest.raises(ExportFailed) as refused:
        export_program(_plain(module))
    message = str(refused.value)
    assert message.startswith("torch.export ")
    assert "leave out --engine torch" in message
    assert len(message) < 1000


def test_a_source_without_a_torch_module_and_another_precision_are_refused(tmp_path, monkeypatch):
    linear(tmp_path / "chances.onnx")
    graph = Tensors(ConversionRequest("chances", str(tmp_path / "chances.onnx")))
    with pytest.raises(ConversionError, match=r"is not a torch module.*leave out --engine torch"):
        require_torch_module(graph, "fp32")
    (tmp_path / "exported_nets.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    net = Tensors(ConversionRequest("net", "exported_nets:good"))
    with pytest.raises(ConversionError, match="computes in FP32, and --precision fp16"):
        require_torch_module(net, "fp16")
    assert list(require_torch_module(net, "fp32").example) == ["x", "ids"]

"""torch modules and ONNX graphs: what is accepted, what is refused, which faults are caught."""

import json
import sys
import textwrap
import zipfile

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from converters import cache, conversion
from converters.conversion import prove_graph, reference_in, source_sha256
from converters.errors import ConversionError
from converters.export.tensor_info import TensorInfo
from converters.proof.reference import Reference
from converters.proof.tolerance import tolerance
from converters.task import ConversionRequest
from converters.tasks.tensors.samples import variations
from converters.tasks.tensors.task import Tensors, open_source
from tidegate.app.task_registry import task_of

F, INT = TensorProto.FLOAT, TensorProto.INT64


def write_graph(path, nodes, inputs, outputs, weights=(), **settings):
    """An ONNX file; inputs and outputs are (name, type, shape)."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*tensor) for tensor in inputs],
        [helper.make_tensor_value_info(*tensor) for tensor in outputs],
        [numpy_helper.from_array(value, name) for name, value in dict(weights).items()],
    )
    opsets = [helper.make_opsetid("", settings.pop("opset", 17)), *settings.pop("opsets", ())]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path, **settings)
    return path


def linear(path, **settings):
    """x [b, 4] -> softmax(x w) [b, 3]."""
    weights = {"w": np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Softmax", ["h"], ["y"], axis=-1),
    ]
    shapes = [("x", F, ["b", 4])], [("y", F, ["b", 3])]
    return write_graph(path, nodes, *shapes, weights, **settings)


def _proved(task, folder):
    """The reference and the checks of the graph, with the original's real outputs."""
    folder.mkdir(exist_ok=True)
    task.export(folder / "model.onnx")
    answers = task.ask(folder, lambda text: None)
    np.savez(folder / "original.npz", **answers)
    (folder / "metadata.json").write_text(json.dumps(task.metadata()))
    reference = reference_in(folder, "t", task, "fp32")
    return reference, task.prove_graph(folder / "model.onnx", reference)


def test_a_graph_is_served_as_it_is_and_proved_by_an_independent_executor(tmp_path):
    path = linear(tmp_path / "m.onnx")
    task = Tensors(ConversionRequest("t", str(path)))
    reference, checks = _proved(task, tmp_path / "c")
    assert [check.line() for check in checks if not check.passed] == []
    assert (tmp_path / "c" / "model.onnx").read_bytes() == path.read_bytes()
    assert str(reference.outputs["executor"]) == "onnx.reference"
    assert any("largest of y" in check.name for check in checks)
    golden = task.golden(reference)
    assert len(golden.request["x"]) == 4
    assert len(golden.expect["y"]) == 3


def test_external_data_beside_the_file_is_included(tmp_path):
    settings = {"save_as_external_data": True, "location": "w.bin", "size_threshold": 0}
    linear(tmp_path / "m.onnx", **settings)
    source = open_source(str(tmp_path))
    assert [file.name for file in source.files()] == ["m.onnx", "w.bin"]
    source.write(tmp_path / "one.onnx")
    weights = onnx.load(tmp_path / "one.onnx").graph.initializer
    assert not [tensor for tensor in weights if tensor.external_data]


def test_texts_integers_and_an_open_axis_are_accepted(tmp_path):
    keys = {"keys_strings": ["a", "größer"], "values_int64s": [1, 2], "default_int64": -1}
    nodes = [
        helper.make_node("LabelEncoder", ["word"], ["code"], domain="ai.onnx.ml", **keys),
        helper.make_node("ReduceSum", ["n", "axis"], ["sum"], keepdims=0),
        helper.make_node("Identity", ["word"], ["same"]),
    ]
    write_graph(
        tmp_path / "m.onnx",
        nodes,
        [("word", TensorProto.STRING, ["b", 1]), ("n", INT, ["b", "length"])],
        [("code", INT, ["b", 1]), ("sum", INT, ["b"]), ("same", TensorProto.STRING, ["b", 1])],
        {"axis": np.array([1])},
        opsets=[helper.make_opsetid("ai.onnx.ml", 2)],
    )
    task = Tensors(ConversionRequest("t", str(tmp_path / "m.onnx")))
    _, checks = _proved(task, tmp_path / "c")
    assert [check.line() for check in checks if not check.passed] == []
    assert any("n[16]" in check.name for check in checks)


def _scaled(graph):
    weight = numpy_helper.to_array(graph.initializer[0]) * np.float32(1.01)
    graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))


def _swapped(graph):
    weight = numpy_helper.to_array(graph.initializer[0])[:, [1, 0, 2]]
    graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))


def _depends_on_the_batch(graph):
    """Replaces the rows by their batch's mean, which changes nothing for a batch of one row."""
    zero = numpy_helper.from_array(np.array([0]), "first")
    graph.initializer.append(zero)
    graph.node[0].output[0] = "raw"
    added = [
        helper.make_node("ReduceMean", ["raw"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["raw", "mean"], ["rest"]),
        helper.make_node("Sub", ["raw", "rest"], ["h"]),
    ]
    for index, node in enumerate(added):
        graph.node.insert(1 + index, node)


def _baked(graph):
    shape = numpy_helper.from_array(np.array([1, 4]), "shape")
    graph.initializer.append(shape)
    graph.node.insert(0, helper.make_node("Reshape", ["x", "shape"], ["x1"]))
    graph.node[1].input[0] = "x1"


def _random(graph):
    noise = helper.make_node("RandomNormalLike", ["raw"], ["noise"], scale=1e-3)
    graph.node[0].output[0] = "raw"
    graph.node.insert(1, noise)
    graph.node.insert(2, helper.make_node("Add", ["raw", "noise"], ["h"]))


def _not_a_number(graph):
    graph.node[0].output[0] = "raw"
    graph.node.insert(1, helper.make_node("Log", ["raw"], ["h"]))


FAULTS = {
    _scaled: "parity",
    _swapped: "parity",
    _depends_on_the_batch: "batch invariance",
    _random: "determinism",
    _not_a_number: "parity",
}


@pytest.mark.parametrize("spoil", FAULTS, ids=lambda spoil: spoil.__name__.strip("_"))
def test_a_fault_in_the_built_graph_is_caught(tmp_path, spoil):
    task = Tensors(ConversionRequest("t", str(linear(tmp_path / "m.onnx"))))
    reference, checks = _proved(task, tmp_path / "c")
    assert all(check.passed for check in checks)
    model = onnx.load(tmp_path / "c" / "model.onnx")
    spoil(model.graph)
    onnx.save(model, tmp_path / "bad.onnx")
    failed = [
        check for check in task.prove_graph(tmp_path / "bad.onnx", reference) if not check.passed
    ]
    assert FAULTS[spoil] in " ".join(check.name for check in failed)
    assert "of sample " in failed[0].worst
    assert "original" in failed[0].worst


def test_a_baked_batch_axis_is_caught(tmp_path):
    task = Tensors(ConversionRequest("t", str(linear(tmp_path / "m.onnx"))))
    reference, _ = _proved(task, tmp_path / "c")
    model = onnx.load(tmp_path / "c" / "model.onnx")
    _baked(model.graph)
    onnx.save(model, tmp_path / "bad.onnx")
    checks = prove_graph(task, tmp_path / "bad.onnx", reference).checks
    (failed,) = [check for check in checks if not check.passed]
    assert "Reshape" in failed.worst


def _no_onnx(path):
    path.write_bytes(b"no graph at all" * 10)


def _cut_off(path):
    linear(path)
    path.write_bytes(path.read_bytes()[:60])


def _outside(path, location):
    linear(path, save_as_external_data=True, location="w.bin", size_threshold=0)
    model = onnx.load(path, load_external_data=False)
    external_data = model.graph.initializer[0].external_data
    next(entry for entry in external_data if entry.key == "location").value = location
    path.write_bytes(model.SerializeToString())


def _climbing(path):
    _outside(path, "../../../etc/passwd")


def _absolute(path):
    _outside(path, "/etc/passwd")


def _linked(path):
    _outside(path, "link.bin")
    (path.parent / "link.bin").symlink_to("/etc/passwd")


def _data_missing(path):
    _outside(path, "gone.bin")


def _data_cut_off(path):
    _outside(path, "w.bin")
    (path.parent / "w.bin").write_bytes(b"12")


def _unknown_operator(path):
    node = helper.make_node("Conjure", ["x"], ["y"], domain="my.own")
    opsets = [helper.make_opsetid("my.own", 1)]
    write_graph(path, [node], [("x", F, ["b", 4])], [("y", F, ["b", 4])], opsets=opsets)


def _future_opset(path):
    node = helper.make_node("Relu", ["x"], ["y"])
    write_graph(path, [node], [("x", F, ["b", 4])], [("y", F, ["b", 4])], opset=99)


def _fixed_batch(path):
    node = helper.make_node("Relu", ["x"], ["y"])
    write_graph(path, [node], [("x", F, [1, 4])], [("y", F, [1, 4])])


def _no_batch_out(path):
    node = helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)
    write_graph(path, [node], [("x", F, ["b", 4])], [("y", F, [])])


def _zip_map(path):
    node = helper.make_node(
        "ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2, 3]
    )
    model = onnx.load(linear(path))
    del model.graph.node[:], model.graph.output[:], model.graph.initializer[:]
    model.graph.node.append(node)
    inner = helper.make_map_type_proto(INT, helper.make_tensor_type_proto(F, None))
    value = helper.make_value_info("y", helper.make_sequence_type_proto(inner))
    model.graph.output.append(value)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    onnx.save(model, path)


def _bfloat(path):
    """ONNX Runtime cannot multiply BF16 matrices on a CPU."""
    node = helper.make_node("MatMul", ["x", "x"], ["y"])
    dtype = TensorProto.BFLOAT16
    write_graph(path, [node], [("x", dtype, ["b", 4, 4])], [("y", dtype, ["b", 4, 4])])


def _enormous(path):
    """A few bytes that allocate a terabyte."""
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["much"]),
        helper.make_node("ReduceSum", ["much"], ["sum"], keepdims=1),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    weights = {"size": np.array([2**38])}
    write_graph(path, nodes, [("x", F, ["b", 4])], [("y", F, ["b", 4])], weights)


def _answers_nan(path):
    nodes = [helper.make_node("Log", ["x"], ["y"])]
    write_graph(path, nodes, [("x", F, ["b", 4])], [("y", F, ["b", 4])])


REFUSED = {
    _no_onnx: "not an ONNX file",
    _cut_off: "truncated",
    _climbing: "outside the model's folder",
    _absolute: "outside the model's folder",
    _linked: "outside the model's folder",
    _data_missing: "not there",
    _data_cut_off: "truncated",
    _unknown_operator: "my.own",
    _future_opset: "opset",
    _fixed_batch: "input 'x' has the shape [1, 4]: its first axis is fixed to 1",
    _no_batch_out: "output 'y' has no batch axis",
    _zip_map: "zipmap",
    _bfloat: "types and an opset that this version has",
    _enormous: "ONNX Runtime",
    _answers_nan: "NaN or infinity in output 'y'",
}


@pytest.mark.parametrize("write", REFUSED, ids=lambda write: write.__name__.strip("_"))
def test_a_graph_that_is_broken_or_unsafe_is_refused(tmp_path, write):
    write(tmp_path / "m.onnx")
    with pytest.raises(ConversionError) as refused:
        Tensors(ConversionRequest("t", str(tmp_path / "m.onnx"))).ask(tmp_path, lambda text: None)
    assert REFUSED[write].lower() in str(refused.value).lower()
    assert "\n" not in str(refused.value)


def test_bf16_is_served_as_fp32_and_rounded_in_the_graph(tmp_path):
    """Against torch's rounding: an input with a Cast after it, and an output in FP32."""
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=F),
        helper.make_node("Mul", ["wide", "three"], ["more"]),
        helper.make_node("Cast", ["more"], ["y"], to=TensorProto.BFLOAT16),
        helper.make_node("Cast", ["y"], ["z"], to=F),
    ]
    bf16 = TensorProto.BFLOAT16
    write_graph(
        tmp_path / "m.onnx",
        nodes,
        [("x", bf16, ["b", 4])],
        [("y", bf16, ["b", 4]), ("z", F, ["b", 4])],
        {"three": np.float32(3.1)},
    )
    task = Tensors(ConversionRequest("t", str(tmp_path / "m.onnx")))
    metadata = task.metadata()
    tensors = (*metadata["inputs"], *metadata["outputs"])
    assert [tensor["dtype"] for tensor in tensors] == ["FP32"] * 3
    assert metadata["half"]  # an output rounded to 8 bits needs the tolerance of half precision
    task.export(tmp_path / "engine.onnx")
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    session = onnxruntime.InferenceSession(tmp_path / "engine.onnx")
    expected = (torch.from_numpy(x).bfloat16().float() * 3.1).bfloat16().float().numpy()
    for actual in session.run(["y", "z"], {"x": x}):
        assert (actual == expected).all()
    (tmp_path / "work").mkdir()
    answers = task.ask(tmp_path / "work", lambda text: None)
    reference = Reference("t", tmp_path / "work", metadata, answers, tolerance("tensors", "fp16"))
    checks = task.prove_graph(tmp_path / "engine.onnx", reference)
    assert [check.name for check in checks if not check.passed] == []


MODULE = """
import torch


class Net(torch.nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.layer, self.drop = torch.nn.Linear(6, 4), torch.nn.Dropout(0.5)
        self.words = torch.nn.Embedding(10, 3)

    def forward(self, x, ids):
        hidden = self.drop(torch.relu(self.layer(x)))
        return {"scores": hidden, "embedding": self.words(ids).sum(1), "top": hidden.argmax(-1)}


class Baked(torch.nn.Module):
    def forward(self, x):
        return x.reshape(2, -1) * 2


X, IDS = torch.linspace(-1, 1, 6)[None], torch.tensor([[1, 5, 9]])


def good():
    return Net(), (X, IDS)


def named():
    return Net(), {"ids": IDS, "x": X}


def random_weights():
    return Net(torch.seed()), (X, IDS)


def baked():
    return Baked(), (torch.ones(2, 4),)


def fails():
    raise RuntimeError("no weights here")


def wrong_return():
    return Net()


def wrong_inputs():
    return Net(), (X, 3)


def no_batch():
    return Net(), (X, IDS[0][0])


def unlike():
    return Net(), (X.repeat(3, 1), IDS)


def half_forward():
    return Net(), (X,)


def bfloat():
    return torch.nn.ReLU(), (X.bfloat16(),)


def half():
    return torch.nn.ReLU(), (X.half(),)
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    (tmp_path / "user_nets.py").write_text(textwrap.dedent(MODULE))
    (tmp_path / "user_broken.py").write_text("import torch\nraise SystemExit('no')\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("user_nets", "user_broken"):
        sys.modules.pop(name, None)
    if str(tmp_path) in sys.path:
        sys.path.remove(str(tmp_path))


@pytest.mark.parametrize("factory", ["good", "named"])
def test_a_module_in_training_mode_with_one_row_is_exported_for_any_batch(factories, factory):
    task = Tensors(ConversionRequest("t", f"user_nets:{factory}"))
    _, checks = _proved(task, factories / "c")
    assert [check.line() for check in checks if not check.passed] == []
    assert [output.name for output in task.source.outputs] == ["scores", "embedding", "top"]
    assert any("elements that differ" in check.name for check in checks)


def test_what_the_factorys_module_imports_decides_the_cache_too(factories):
    (factories / "user_layers.py").write_text("import torch\nLAYER = torch.nn.ReLU\n")
    source = "import user_layers, torch\nmake = lambda: (user_layers.LAYER(), (torch.ones(1, 2),))"
    (factories / "user_nets.py").write_text(source)
    names = [file.name for file in open_source("user_nets:make").files()]
    sys.modules.pop("user_layers")
    assert names == ["user_layers.py", "user_nets.py"]


@pytest.mark.parametrize(
    "imports",
    [
        "try:\n    from .user_layers import LAYER\nexcept ImportError:\n"
        "    from user_layers import LAYER\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..types import Spec\n"
        "from user_layers import LAYER\n",
    ],
    ids=["a script's", "a type checker's"],
)
def test_a_relative_import_that_is_not_taken_is_no_part_of_the_users_code(factories, imports):
    (factories / "user_layers.py").write_text("import torch\nLAYER = torch.nn.ReLU\n")
    source = f"{imports}import torch\nmake = lambda: (LAYER(), (torch.ones(1, 2),))"
    (factories / "user_nets.py").write_text(source)
    names = [file.name for file in open_source("user_nets:make").files()]
    sys.modules.pop("user_layers")
    assert names == ["user_layers.py", "user_nets.py"]


def test_the_users_code_anywhere_decides_the_cache_and_so_do_installed_packages(
    factories, monkeypatch
):
    """A factory in one folder of a project, its network in another, and a package of pip's."""
    texts = {
        "user_export/__init__.py": "",
        "user_export/make.py": "from user_networks.model import Net\nimport torch\n"
        "def make():\n    return Net(), (torch.ones(1, 2),)\n",
        "user_networks/model.py": "import torch\nfrom .constants import SCALE\nimport psutil\n"
        "class Net(torch.nn.Module):\n"
        "    def forward(self, x):\n        return x * SCALE\n",
        "user_networks/constants.py": "SCALE = 2.0\n",
        "user_networks/unused.py": "",
    }
    for name, text in texts.items():
        (factories / name).parent.mkdir(exist_ok=True)
        (factories / name).write_text(text)
    task = Tensors(ConversionRequest("t", "user_export.make:make"))
    files = [path.relative_to(factories).as_posix() for path in task.files()]
    for name in [name for name in sys.modules if name.startswith("user_")]:
        sys.modules.pop(name)
    assert files == [name for name in sorted(texts) if "unused" not in name]
    assert task.packages() == ("psutil",)
    source, key = source_sha256(task), conversion._key(task)
    monkeypatch.setattr(cache, "version", lambda name: "another")
    assert source_sha256(task) == source
    assert conversion._key(task) != key
    (factories / "user_networks" / "constants.py").write_text("SCALE = 3.0\n")
    assert source_sha256(task) != source


def test_the_task_is_inferred_from_the_source(tmp_path):
    (tmp_path / "onnx_folder").mkdir()
    linear(tmp_path / "onnx_folder" / "m.onnx")
    assert task_of("anything.onnx") == "tensors"
    assert task_of("package.module:factory") == "tensors"
    assert task_of(str(tmp_path / "onnx_folder")) == "tensors"
    (tmp_path / "onnx_folder" / "config.json").write_text("{}")
    assert task_of(str(tmp_path / "onnx_folder")) is None
    assert task_of("text_embedding") is None
    with pytest.raises(ConversionError, match="pickle"):
        (tmp_path / "m.pkl").write_bytes(b"")
        task_of(str(tmp_path / "m.pkl"))


FACTORIES = {
    "user_nets:random_weights": "another model each time",
    "user_nets:baked": "batch",
    "user_nets:fails": "no weights here",
    "user_nets:wrong_return": "return (module, example_inputs)",
    "user_nets:wrong_inputs": "not a tensor",
    "user_nets:no_batch": "no axis",
    "user_nets:unlike": "differ",
    "user_nets:half_forward": "fails on its example",
    "user_nets:bfloat": "bfloat16",
    "user_nets:half": "FP16",
    "user_nets:nothing": "no function 'nothing'",
    "user_nowhere:x": "no module 'user_nowhere'",
    "user_broken:x": "importing user_broken fails",
    "what is this": "neither",
}


@pytest.mark.parametrize("source", FACTORIES)
def test_a_factory_that_does_not_fit_is_refused(factories, source):
    with pytest.raises(ConversionError) as refused:
        task = Tensors(ConversionRequest("t", source))
        task.export(factories / "m.onnx")
        task.ask(factories, lambda text: None)
    assert FACTORIES[source] in str(refused.value)


def _save(path, **arrays):
    np.savez(path, **arrays)


def _bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", b"\0" * 40_000_000)


SAMPLES = {
    "missing": (lambda path: _save(path, z=np.ones((2, 4), np.float32)), "arrays ['z']"),
    "shape": (lambda path: _save(path, x=np.ones((2, 5), np.float32)), "shape [2, 5]"),
    "texts": (lambda path: _save(path, x=np.array([["a"] * 4])), "holds <U1"),
    "complex": (lambda path: _save(path, x=np.ones((2, 4), complex)), "complex128"),
    "nan": (lambda path: _save(path, x=np.full((2, 4), np.nan)), "row 0 is not finite"),
    "empty": (lambda path: _save(path, x=np.ones((0, 4), np.float32)), "rows"),
    "objects": (lambda path: _save(path, x=np.array([[{}]], dtype=object)), "plain arrays"),
    "bomb": (_bomb, "zip bomb"),
    "no zip": (lambda path: path.write_bytes(b"hello"), "plain arrays"),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_that_do_not_fit_are_refused(tmp_path, name):
    write, message = SAMPLES[name]
    write(tmp_path / "s.npz")
    path = linear(tmp_path / "m.onnx")
    with pytest.raises(ConversionError) as refused:
        Tensors(ConversionRequest("t", str(path), tmp_path / "s.npz"))
    assert message in str(refused.value)


def test_the_users_samples_are_used(tmp_path):
    np.savez(tmp_path / "s.npz", x=np.arange(12.0).reshape(3, 4))
    task = Tensors(ConversionRequest("t", str(linear(tmp_path / "m.onnx")), tmp_path / "s.npz"))
    assert task.groups[0]["x"].dtype == np.float32
    assert len(task.groups[0]["x"]) == 3


def test_variations_stay_in_the_examples_range():
    inputs = [
        TensorInfo("ids", "INT64", (3,)),
        TensorInfo("x", "FP32", (2,)),
        TensorInfo("on", "BOOL", (1,)),
    ]
    example = {
        "ids": np.array([[2, 7, 7]]),
        "x": np.array([[-1.0, 3.0]], np.float32),
        "on": np.array([[True]]),
    }
    (group,) = variations(example, inputs)
    assert set(np.unique(group["ids"])) == set(range(2, 8))
    assert group["x"].dtype == np.float32
    assert -1 <= group["x"].min() < group["x"].max() <= 3
    assert set(np.unique(group["on"])) == {True, False}  # a mask of ones would mask nothing

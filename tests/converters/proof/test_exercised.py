"""Samples that exercise a model, sources that are refused with a reason, and ``proof.md``."""

import textwrap

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from converters.conversion import ConversionOptions, convert
from converters.errors import ConversionError, ExportFailed, SourceMissing, SourceRefused
from converters.proof.broken_graphs import dropped_mask, skipped_layers
from converters.proof.checks import Check
from converters.proof.record import measured_grade
from converters.proof.reference_process import last_words, repeat_positions, require_stateless
from converters.sources.graph_file import GraphFile
from converters.sources.huggingface import HuggingFaceFolder
from converters.task import ConversionRequest
from converters.tasks.tensors.samples import read_npz
from converters.tasks.tensors.task import Tensors
from converters.tasks.text.samples import odd_texts
from ensembles.tensors import declare
from modelspec.pbtxt import to_proto
from tests.tiny_models import save_classifier, word_tokenizer
from tidegate.app.task_registry import why_not_taken
from tidegate.cli import cli

F, INT = TensorProto.FLOAT, TensorProto.INT64
# Each test exports and proves in separate processes: a busy machine takes minutes for one.
pytestmark = pytest.mark.timeout(300)

MODULES = """
import warnings

import torch
from torch import nn


class Scorer(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.out = nn.Embedding(500, 8), nn.Linear(8, 3)

    def forward(self, ids):
        return self.out(self.words(ids).mean(1))


class Columns(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tables = nn.ModuleList([nn.Embedding(n, 4) for n in (5, 40, 300)])
        self.out = nn.Linear(12, 2)

    def forward(self, cats):
        return self.out(torch.cat([t(cats[:, i]) for i, t in enumerate(self.tables)], 1))


class Branches(nn.Module):
    def forward(self, x):
        return torch.relu(x).clamp(max=600.0) * 2


class Flat(Scorer):
    def forward(self, ids):
        return super().forward(ids)[:, 0] * 1e-6


class Remembers(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = 0

    def forward(self, x):
        self.seen += 1
        return x * (1.0 if self.seen < 30 else 2.0)


class OneRow(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4, track_running_stats=False)

    def forward(self, x):
        return self.norm(x)


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(
            nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1)
        )

    def forward(self, x):
        return torch.sigmoid(self.layers(x))


class Constant(nn.Module):
    def forward(self, x):
        return x * 0 + 0.25


IDS, X = torch.zeros(1, 6, dtype=torch.long), torch.randn(8, 4)
ids = lambda: (Scorer(), {"ids": IDS})
columns = lambda: (Columns(), {"cats": torch.zeros(1, 3, dtype=torch.long)})
branches = lambda: (Branches(), {"x": X})
flat = lambda: (Flat(), {"ids": IDS})
remembers = lambda: (Remembers(), {"x": X})
one_row = lambda: (OneRow(), {"x": X})


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(Mlp()), {"x": X}


def traced():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(Mlp(), X), {"x": X}


bf16 = lambda: (Mlp().bfloat16(), {"x": X.bfloat16()})
mlp = lambda: (Mlp(), {"x": X})
zeros = lambda: (Mlp(), {"x": torch.zeros(1, 4)})
constant = lambda: (Constant(), {"x": X})
"""


@pytest.fixture
def modules(tmp_path, monkeypatch):
    name = f"imported_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(MODULES))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    return name


def _quiet(text):
    pass


def _proved(task, precision="fp32"):
    return convert(task, ConversionOptions(precision), _quiet)


def _check_of(checks, name):
    return next(check for check in checks if check.name.startswith(name))


def test_ids_are_drawn_from_the_whole_table_and_reversed_rows_are_detected(modules, tmp_path):
    """The example contains only id 0; reversing rows 1 to 499 once passed."""
    task = Tensors(ConversionRequest("t", f"{modules}:ids"))
    assert task.source.ids()["ids"].tolist() == [500] * 6
    (group,) = task.groups
    assert len(np.unique(group["ids"])) > 400
    converted = _proved(task)
    model = onnx.load(converted.engine)
    table = next(t for t in model.graph.initializer if list(t.dims) == [500, 8])
    rows = numpy_helper.to_array(table).copy()
    rows[1:] = rows[1:][::-1]
    table.CopyFrom(numpy_helper.from_array(rows, table.name))
    onnx.save(model, tmp_path / "bad.onnx")
    assert not all(
        check.passed for check in task.prove_graph(tmp_path / "bad.onnx", converted.reference)
    )
    page = (converted.engine.parent / "proof.md").read_text()
    assert "of 500 rows of its table were read" in page
    assert "the task's own set" in page
    assert "Proved on 20" in page
    assert "the original's answers vary by" in page


def test_a_flat_output_is_declared_with_a_reshape(modules):
    task = Tensors(ConversionRequest("t", f"{modules}:flat"))
    converted = _proved(task)
    assert converted.record.passed
    golden = task.golden(converted.reference)
    assert golden.tolerance < 1e-7  # of answers of 1e-6
    pipeline = declare("t", converted.reference.metadata, golden, {})
    engine, public = (to_proto(spec) for spec in pipeline.models)
    assert engine.output[0].HasField("reshape")
    assert not engine.output[0].reshape.shape
    assert not public.output[0].HasField("reshape")


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("one_row", "batch norm that keeps no running statistics"),
        ("scripted", "TorchScript"),
        ("traced", "TorchScript"),
        ("bf16", "module.float"),
    ],
)
def test_a_module_that_cannot_be_converted_says_why_in_a_line(modules, factory, message):
    with pytest.raises((SourceRefused, ExportFailed), match=message) as refused:
        Tensors(ConversionRequest("t", f"{modules}:{factory}"))
    assert "\n" not in str(refused.value)


def test_a_module_with_state_is_refused(modules):
    with pytest.raises(ConversionError, match="a fresh one answers"):
        Tensors(ConversionRequest("t", f"{modules}:remembers")).ask(
            __import__("pathlib").Path.cwd(), _quiet
        )


def test_scales_are_not_measured_on_an_example_of_zeros(modules):
    task = Tensors(ConversionRequest("t", f"{modules}:zeros"))
    assert _proved(task).record.passed
    with pytest.raises(SourceRefused, match=r"is all 0, .*give --samples"):
        _proved(task, "int8-static")


@pytest.mark.parametrize(
    "precision", ["fp32", "fp16", "int8-weight-only", "int8-static", "int8-per-row", "int8-dynamic"]
)
def test_a_scorer_is_proved_at_every_precision_and_faults_are_detected(
    modules, precision, tmp_path
):
    task = Tensors(ConversionRequest("t", f"{modules}:mlp"))
    converted = _proved(task, precision)
    checks = [check for proof in converted.record.proofs for check in proof.checks]
    assert all(check.passed for check in checks)
    assert (
        "one layer skipped"
        in _check_of(checks, "self-test: planted faults that would pass, graphs")
        .worst.partition("detected: ")[2]
        .partition(";")[0]
    )
    for fault in ("constant", "negated", "scaled"):
        model = onnx.load(converted.engine)
        _after_the_output(model.graph, fault)
        onnx.save(model, tmp_path / "bad.onnx")
        failed = [
            c for c in task.prove_graph(tmp_path / "bad.onnx", converted.reference) if not c.passed
        ]
        assert failed, fault


def _after_the_output(graph, fault):
    """0.5 always, 1 - p, or p / 2."""
    name = graph.output[0].name
    for node in graph.node:
        node.output[:] = ["original" if output == name else output for output in node.output]
    factor, offset = {"constant": (0, 0.5), "negated": (-1, 1), "scaled": (0.5, 0)}[fault]
    for key, value in (("factor", factor), ("offset", offset)):
        graph.initializer.append(numpy_helper.from_array(np.array([value], np.float32), f"t_{key}"))
    graph.node.append(helper.make_node("Mul", ["original", "t_factor"], ["t_scaled"]))
    graph.node.append(helper.make_node("Add", ["t_scaled", "t_offset"], [name]))


def test_a_constant_original_is_reported(modules):
    task = Tensors(ConversionRequest("t", f"{modules}:constant"))
    assert any("CONSTANT" in line for line in _proved(task).record.exercised)


def test_samples_that_are_not_npz_are_refused_in_a_line(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((3, 4)))
    task_inputs = [type("P", (), {"name": "x", "dtype": "FP32", "dims": (4,)})()]
    with pytest.raises(SourceRefused, match=r"savez\('samples.npz', x=rows\)"):
        read_npz(tmp_path / "x.npy", task_inputs)


def test_a_graph_that_computes_in_fp16_is_proved_as_fp16(tmp_path):
    weight = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float16)
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["half", "w"], ["h"]),
        helper.make_node("Cast", ["h"], ["y"], to=F),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", F, ["b", 64])],
        [helper.make_tensor_value_info("y", F, ["b", 8])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    assert _proved(Tensors(ConversionRequest("t", str(tmp_path / "m.onnx")))).record.passed


def test_an_fp16_input_is_served_as_fp32_and_rounded_inside(tmp_path):
    """JSON has no FP16. Numbers closer than FP16 can distinguish are the same to the original."""
    weight = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float16)
    half = TensorProto.FLOAT16
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", half, ["b", 6])],
        [helper.make_tensor_value_info("y", half, ["b", 3])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    task = Tensors(ConversionRequest("t", str(tmp_path / "m.onnx")))
    assert [tensor.dtype for tensor in task.source.inputs] == ["FP32"]
    converted = _proved(task)
    assert converted.record.passed
    import onnxruntime

    row = np.linspace(-1, 1, 6, dtype=np.float32)[None]
    original = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    engine = onnxruntime.InferenceSession(str(converted.engine))
    (expected,) = original.run(None, {"x": row.astype(np.float16)})
    (actual,) = engine.run(None, {"x": row})
    assert np.array_equal(actual, expected)
    declared = declare("t", converted.reference.metadata, task.golden(converted.reference), {})
    assert declared.public.inputs[0].dtype == "FP32"


def test_local_response_normalisation_is_proved_by_onnx_runtime(tmp_path):
    node = helper.make_node("LRN", ["x"], ["y"], size=5, alpha=0.1)
    shape = ["b", 8, 4, 4]
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", F, shape)],
        [helper.make_tensor_value_info("y", F, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    converted = _proved(Tensors(ConversionRequest("t", str(tmp_path / "m.onnx"))))
    assert converted.record.passed
    assert str(converted.reference.outputs["executor"]) == "ONNX Runtime without optimisation"


def test_the_ids_that_a_graph_accepts_are_found_by_trying(tmp_path):
    """Columns with separate tables, one after an offset, and numbers without a limit."""
    first, second = (np.zeros((rows, 2), np.float32) for rows in (70, 30))
    nodes = [
        helper.make_node("Gather", ["ids", "0"], ["a"], axis=1),
        helper.make_node("Gather", ["ids", "1"], ["b"], axis=1),
        helper.make_node("Add", ["b", "20"], ["c"]),
        helper.make_node("Gather", ["first", "a"], ["x"]),
        helper.make_node("Gather", ["second", "c"], ["z"]),
        helper.make_node("Add", ["x", "z"], ["y"]),
    ]
    ids = helper.make_tensor_value_info("ids", INT, ["b", 3])
    y = helper.make_tensor_value_info("y", F, ["b", 2])
    weights = {"first": first, "second": second, "0": np.array(0), "1": np.array(1),
               "20": np.array(20)}  # fmt: skip
    constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", [ids], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    assert GraphFile(tmp_path / "m.onnx").ids()["ids"].tolist() == [70, 10, 0]
    (group,) = Tensors(ConversionRequest("t", str(tmp_path / "m.onnx"))).groups
    assert set(group["ids"][:, 0]) == set(range(70))
    assert set(group["ids"][:, 1]) == set(range(10))


def test_columns_with_separate_tables_are_read_and_the_rest_is_named(modules, tmp_path):
    """With an example of zeros, any table could be reversed except for its row 0."""
    task = Tensors(ConversionRequest("t", f"{modules}:columns"))
    assert task.source.ids()["cats"].tolist() == [5, 40, 300]
    converted = _proved(task)
    for rows in (5, 40, 300):
        model = onnx.load(converted.engine)
        table = next(t for t in model.graph.initializer if list(t.dims) == [rows, 4])
        values = numpy_helper.to_array(table).copy()
        values[1:] = values[1:][::-1]
        table.CopyFrom(numpy_helper.from_array(values, table.name))
        onnx.save(model, tmp_path / "bad.onnx")
        checks = task.prove_graph(tmp_path / "bad.onnx", converted.reference)
        assert not all(check.passed for check in checks), rows
    lines = converted.record.exercised
    assert any("input cats[2]: 2" in line and "of 300 rows" in line for line in lines)
    assert any("NOT REACHED: 4" in line and "cats[2]" in line for line in lines)


def test_a_branch_that_no_sample_reached_is_named(modules):
    lines = _proved(Tensors(ConversionRequest("t", f"{modules}:branches"))).record.exercised
    (line,) = [line for line in lines if line.startswith("NOT REACHED")]
    assert "Clip" in line
    assert "no number above 600" in line


def test_a_mask_of_ones_and_an_example_of_zeros_are_varied():
    from converters.export.tensor_info import TensorInfo
    from converters.tasks.tensors.samples import variations

    tensors = [
        TensorInfo("mask", "INT64", (6,)),
        TensorInfo("count", "INT32", ()),
        TensorInfo("on", "BOOL", (4,)),
    ]
    example = {
        "mask": np.ones((2, 6), np.int64),
        "count": np.zeros(2, np.int32),
        "on": np.ones((2, 4), bool),
    }
    (group,) = variations(example, tensors)
    assert set(np.unique(group["mask"])) == {0, 1}
    assert (group["mask"][:, 0] == 1).all()
    assert len(np.unique(group["count"])) > 1
    assert not group["on"].all()
    assert group["on"][:, 0].all()


def test_special_tokens_are_among_the_samples():
    texts = " ".join(odd_texts(["[CLS]", "[SEP]"]))
    for part in ("it says [SEP] here", "<pad>", "é", "中文", "[SEP]inside[CLS]"):
        assert part in texts or part == "é"


@pytest.mark.parametrize("split", [False, True])
def test_special_tokens_in_a_text_are_tokenised_as_the_original_does(tmp_path, split):
    """``split_special_tokens`` is a setting of the class; tokenizer.json does not have it."""
    save_classifier("bert", tmp_path)
    word_tokenizer(64, split_special_tokens=split).save_pretrained(tmp_path)
    from transformers import AutoTokenizer

    original = AutoTokenizer.from_pretrained(tmp_path)
    ours = HuggingFaceFolder.open(tmp_path).tokenizer()
    for text in odd_texts(ours.special):
        assert ours.backend.encode(text).ids == original(text)["input_ids"][:64], text


def test_a_head_for_another_task_is_refused_and_a_cross_encoder_has_its_own(tmp_path):
    folder = HuggingFaceFolder(tmp_path, {"architectures": ["BertForSequenceClassification"]})
    with pytest.raises(SourceRefused, match="give --task text-classification"):
        folder.require_head("token-classification", "AutoModelForTokenClassification")
    folder.require_head("text-classification", "AutoModelForSequenceClassification")
    pairs = HuggingFaceFolder(tmp_path, {"sentence_transformers": {"version": "5"}})
    with pytest.raises(SourceRefused, match=r"CrossEncoder.*give --task text-ranking"):
        pairs.require_head("text-classification", "AutoModelForSequenceClassification")
    pairs.require_head("text-ranking", "AutoModelForSequenceClassification")


def test_a_hub_id_and_an_adapter_say_what_to_do(tmp_path):
    with pytest.raises(SourceMissing, match=r"hf download BAAI/bge-small-en-v1\.5 --local-dir"):
        HuggingFaceFolder.open(__import__("pathlib").Path("BAAI/bge-small-en-v1.5"))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(SourceRefused, match="copy it again"):
        HuggingFaceFolder.open(tmp_path)


@pytest.mark.parametrize(
    "source",
    ["m.pt", "m.pth", "m.h5", "m.keras", "m.gguf", "m.engine", "m.cbm", "m.safetensors", "m.pb",
     "BAAI/bge-small-en-v1.5"],
)  # fmt: skip
def test_other_formats_say_what_to_do(source):
    assert why_not_taken(source)
    run = CliRunner().invoke(cli, ["convert", source, "--name", "m"])
    assert run.exit_code == 1
    assert "does not say what the model does" not in run.output


def test_a_grade_follows_the_measurement():
    broken = Check("batch invariance: y", 0.3, 1e-4, passed=False)
    assert measured_grade("fp32", [broken]) == "answers depend on the batch"
    assert measured_grade("fp32", []) == "answers do not depend on the batch"


def test_the_last_words_of_a_reference_are_one_line():
    stderr = (
        "Traceback (most recent call last):\n  File x\n\x1b[96mIndexError: index out of range\n"
    )
    assert last_words(stderr).startswith("IndexError: index out of range: a token")
    assert last_words("") == "no message"


def test_an_original_with_the_same_answers_again_keeps_no_state():
    first = np.random.default_rng(0).standard_normal((20, 3))
    positions = repeat_positions(20)
    assert positions[0] == 19
    names = [str(position) for position in range(20)]
    require_stateless(first, first[positions], positions, names)
    with pytest.raises(SystemExit, match="a fresh one answers"):
        require_stateless(first, first[positions] + 0.01, positions, names)


def test_graph_faults_do_what_they_say(tmp_path):
    mask = helper.make_node("Cast", ["attention_mask"], ["m"], to=F)
    nodes = [mask, helper.make_node("MatMul", ["m", "w"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("attention_mask", INT, ["b", 4])],
        [helper.make_tensor_value_info("y", F, ["b", 4])],
        [numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    import onnxruntime

    feed = {"attention_mask": np.array([[1, 1, 0, 0]])}
    (skipped,) = skipped_layers(tmp_path / "m.onnx", tmp_path)
    (dropped,) = dropped_mask(tmp_path / "m.onnx", tmp_path)
    assert not onnxruntime.InferenceSession(str(skipped)).run(None, feed)[0].any()
    assert onnxruntime.InferenceSession(str(dropped)).run(None, feed)[0].all()

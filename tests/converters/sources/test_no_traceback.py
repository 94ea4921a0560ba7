"""Whatever ``tidegate convert`` is given, a source that cannot be converted is refused in one line:
the cause and the remedy. Never a traceback, and never a wrong reason."""

import json
import os
import shutil
import textwrap
import zipfile

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper
from safetensors.torch import save_file

from converters.errors import ConversionError
from tests.converters.tasks.test_tensors import linear, write_graph
from tests.tiny_image_models import save_image_classifier
from tests.tiny_models import save_classifier, save_tagger
from tidegate.cli import cli

F, INT = TensorProto.FLOAT, TensorProto.INT64
# Some are exported first, and refused because of the result.
pytestmark = pytest.mark.timeout(300)
TEXT = ("--task", "text-classification")
IMAGE = ("--task", "image-classification")

MODULES = """
import warnings

import torch
from torch import nn

warnings.simplefilter("ignore")
X = torch.randn(4, 6)


class Branch(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x - 1


class BatchNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(6, track_running_stats=False)

    def forward(self, x):
        return self.norm(x)


class OfTheBatch(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


class Half(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 3).bfloat16())

    def forward(self, x):
        return self.inner(x.bfloat16()).float()


class Cast(nn.Module):
    def forward(self, x):
        return x.bfloat16() * 2


class Texts(nn.Module):
    def forward(self, x):
        return {"y": x, "words": ["a"] * len(x)}


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return (x.sum(1) > 0).long() + (self.calls > 20)


class Throws(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x, 0.5, training=True)


class Quantised(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(6, 3).to_sparse(), requires_grad=False)

    def forward(self, x):
        return x @ self.w.to_dense()


scripted = lambda: (torch.jit.script(nn.Linear(6, 2)), (X,))
traced = lambda: (torch.jit.trace(nn.Linear(6, 2), X), (X,))
inside = lambda: (nn.Sequential(torch.jit.script(nn.Linear(6, 2))), (X,))
branch = lambda: (Branch(), (X,))
batch_norm = lambda: (BatchNorm(), (X,))
of_the_batch = lambda: (OfTheBatch(), (X,))
bf16 = lambda: (Half(), (X,))
bf16_out = lambda: (Cast(), (X,))
texts = lambda: (Texts(), (X,))
counts = lambda: (Counts(), (X,))
throws = lambda: (Throws(), (X,))
sparse = lambda: (Quantised(), (X,))
no_forward = lambda: (nn.Module(), (X,))
weights = lambda: nn.Linear(6, 2).state_dict()
empty = lambda: (nn.Linear(6, 2), ())
complex_ = lambda: (nn.Identity(), (torch.randn(4, 6, dtype=torch.complex64),))
on_meta = lambda: (nn.Linear(6, 2, device="meta"), (X,))
nothing = lambda: None
"""

# The factory, and a part of the message.
FACTORIES = {
    "scripted": "TorchScript",
    "traced": "TorchScript",
    "inside": "TorchScript",
    "branch": "could not export",
    "batch_norm": "batch norm that keeps no running statistics",
    "of_the_batch": "batch",
    "bf16": "bfloat16",
    "bf16_out": "bfloat16",
    "texts": "every output must be a tensor",
    "counts": "keeps state from call to call",
    "throws": "keeps state from call to call",
    "sparse": "sparse",
    "no_forward": "forward",
    "weights": "return (module, example_inputs)",
    "empty": "example",
    "complex_": "complex",
    "on_meta": "meta",
    "nothing": "return (module, example_inputs)",
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def _refusal(source, *options) -> str:
    """The message of ``tidegate convert``, whichever way it refuses."""
    run = CliRunner().invoke(cli, ["convert", str(source), "--name", "m", *options])
    assert run.exit_code != 0
    if isinstance(run.exception, SystemExit):  # click's own, with the usage above it
        message = run.output.strip().splitlines()[-1]
    else:
        assert isinstance(run.exception, ConversionError), repr(run.exception)
        message = str(run.exception)
    assert message
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize("factory", FACTORIES)
def test_a_factory_that_cannot_be_converted(home, monkeypatch, factory):
    name = f"imported_{abs(hash(str(home)))}"
    (home / f"{name}.py").write_text(textwrap.dedent(MODULES))
    monkeypatch.syspath_prepend(home)
    monkeypatch.setenv("PYTHONPATH", str(home), prepend=":")
    message = _refusal(f"{name}:{factory}")
    assert FACTORIES[factory] in message
    if factory != "of_the_batch":  # a failed proof names its checks, one per line
        assert "\n" not in message


def _data_missing(folder):
    linear(folder / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    (folder / "w.bin").unlink()


def _opset(folder):
    node = helper.make_node("Relu", ["x"], ["y"])
    write_graph(folder / "m.onnx", [node], [("x", F, ["b", 4])], [("y", F, ["b", 4])], opset=99)


def _ir_version(folder):
    model = onnx.load(linear(folder / "m.onnx"))
    model.ir_version = 999
    (folder / "m.onnx").write_bytes(model.SerializeToString())


def _sequence(folder):
    model = onnx.load(linear(folder / "m.onnx"))
    del model.graph.output[:]
    model.graph.node.append(helper.make_node("SequenceConstruct", ["h"], ["s"]))
    sequence_type = helper.make_sequence_type_proto(helper.make_tensor_type_proto(F, None))
    model.graph.output.append(helper.make_value_info("s", sequence_type))
    onnx.save(model, folder / "m.onnx")


def _optional(folder):
    model = onnx.load(linear(folder / "m.onnx"))
    del model.graph.output[:]
    model.graph.node.append(helper.make_node("Optional", ["h"], ["s"]))
    optional_type = helper.make_optional_type_proto(helper.make_tensor_type_proto(F, None))
    model.graph.output.append(helper.make_value_info("s", optional_type))
    onnx.save(model, folder / "m.onnx")


def _loop(folder):
    """As many iterations as the batch's largest number says: the output depends on the batch."""
    turn = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["v", "v"], ["w"])],
        "turn",
        [helper.make_tensor_value_info("i", INT, []),
         helper.make_tensor_value_info("go", TensorProto.BOOL, []),
         helper.make_tensor_value_info("v", F, None)],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []),
         helper.make_tensor_value_info("w", F, None)],
    )  # fmt: skip
    nodes = [
        helper.make_node("ReduceMax", ["n"], ["most"], keepdims=0),
        helper.make_node("Loop", ["most", "", "x"], ["y"], body=turn),
    ]
    shapes = [("x", F, ["b", 4]), ("n", INT, ["b", 1])], [("y", F, ["b", 4])]
    write_graph(folder / "m.onnx", nodes, *shapes)


def _broken_int8(folder):
    """QLinearMatMul without its scales."""
    nodes = [helper.make_node("QLinearMatMul", ["x", "s", "z", "w", "s", "z", "s"], ["y"])]
    dtype = TensorProto.UINT8
    weights = {"s": np.float32(0.1), "z": np.uint8(0), "w": np.zeros((4, 2), np.uint8)}
    shapes = [("x", dtype, ["b", 4])], [("y", dtype, ["b", 2])]
    write_graph(folder / "m.onnx", nodes, *shapes, weights)


def _wrong_rank(folder):
    """Loads, and fails on every input."""
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    shapes = [("x", F, ["b", 4])], [("y", F, ["b", 3])]
    write_graph(folder / "m.onnx", nodes, *shapes, {"shape": np.array([-1, 3])})


def _two_models(folder):
    linear(folder / "a.onnx")
    linear(folder / "b.onnx")


def _no_onnx(folder):
    (folder / "m.onnx").write_bytes(b"PK\x03\x04 not this")


def _empty(folder):
    (folder / "m.onnx").write_bytes(b"")


def _rows_of_its_own(folder):
    """As many rows as there are distinct numbers."""
    nodes = [helper.make_node("Unique", ["x"], ["y"])]
    write_graph(folder / "m.onnx", nodes, [("x", F, ["b", 4])], [("y", F, ["n"])])


def _input_given_back(folder):
    """Triton never answered a pipeline whose output is called as its input."""
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    write_graph(folder / "m.onnx", nodes, [("x", F, ["b", 4])], [("x", F, ["b", 4])])


GRAPHS = {
    _input_given_back: "has an output of the same name as its input 'x'",
    _rows_of_its_own: "one row for each row of the inputs",
    _data_missing: "'w.bin', which is not there",
    _opset: "opset",
    _ir_version: "IR version",
    _sequence: "Triton serves only tensors",
    _optional: "Triton serves only tensors",
    _broken_int8: "ONNX Runtime",
    _wrong_rank: "fails on a sample",
    _no_onnx: "not an ONNX file",
    _empty: "is empty: copy it again",
    _loop: "batch",
}


@pytest.mark.parametrize("write", GRAPHS, ids=lambda write: write.__name__.strip("_"))
def test_a_graph_that_cannot_be_converted(home, write):
    (home / "g").mkdir()
    write(home / "g")
    assert GRAPHS[write] in _refusal(home / "g" / "m.onnx")


def test_a_folder_with_two_graphs(home):
    (home / "g").mkdir()
    _two_models(home / "g")
    assert "give the folder of one model, or the file" in _refusal(home / "g", "--task", "tensors")


def _file(name, data=b"\x00" * 64):
    def write(folder):
        (folder / name).write_bytes(data)
        return folder / name

    return write


def _state_dict(folder):
    torch.save(torch.nn.Linear(2, 2).state_dict(), folder / "weights.pt")
    return folder / "weights.pt"


def _zip_of_weights(folder):
    _state_dict(folder)
    with zipfile.ZipFile(folder / "weights.zip", "w") as archive:
        archive.write(folder / "weights.pt", "weights.pt")
    return folder / "weights.zip"


def _safetensors(folder):
    save_file({"w": torch.zeros(2, 2)}, folder / "model.safetensors")
    return folder / "model.safetensors"


def _folder_of_safetensors(folder):
    (folder / "m").mkdir()
    _safetensors(folder / "m")
    return folder / "m"


def _folder_of_a_state_dict(folder):
    (folder / "m").mkdir()
    _state_dict(folder / "m")
    return folder / "m"


def _saved_model(folder):
    (folder / "m" / "variables").mkdir(parents=True)
    (folder / "m" / "saved_model.pb").write_bytes(b"\x08\x01")
    return folder / "m"


def _folder_of_gguf(folder):
    (folder / "m").mkdir()
    (folder / "m" / "model-q4.gguf").write_bytes(b"GGUF" + b"\0" * 20)
    return folder / "m"


def _lightning(folder):
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2"}, folder / "last.ckpt")
    return folder / "last.ckpt"


def _adapter(folder):
    (folder / "m").mkdir()
    settings = {"peft_type": "LORA", "base_model_name_or_path": "nobody/nothing"}
    (folder / "m" / "adapter_config.json").write_text(json.dumps(settings))
    save_file({"w": torch.zeros(2, 2)}, folder / "m" / "adapter_model.safetensors")
    return folder / "m"


def _empty_folder(folder):
    (folder / "m").mkdir()
    return folder / "m"


def _folder_of_models(folder):
    for name in ("checkpoint-10", "checkpoint-20"):
        (folder / "m" / name).mkdir(parents=True)
        (folder / "m" / name / "config.json").write_text("{}")
    return folder / "m"


def _nowhere(folder):
    return folder / "not" / "there"


FILES = {
    "m.gguf": (_file("m.gguf"), "GGUF"),
    "m.h5": (_file("m.h5"), "ONNX"),
    "m.keras": (_file("m.keras"), "ONNX"),
    "m.tflite": (_file("m.tflite"), "ONNX"),
    "m.mar": (_file("m.mar"), "TorchServe"),
    "m.nemo": (_file("m.nemo"), "ONNX"),
    "m.bz2": (_file("m.bz2"), "unpack"),
    "m.tar.gz": (_file("m.tar.gz"), "unpack"),
    "m.zip": (_zip_of_weights, "unpack"),
    "m.pdparams": (_file("m.pdparams"), "ONNX"),
    "m.npz": (_file("m.npz"), "weights"),
    "m.msgpack": (_file("m.msgpack"), "ONNX"),
    "m.mlpackage": (_file("m.mlpackage"), "Core ML"),
    "m.xml": (_file("m.xml"), "OpenVINO"),
    "m.params": (_file("m.params"), "ONNX"),
    "m.caffemodel": (_file("m.caffemodel"), "ONNX"),
    "m.weights": (_file("m.weights"), "ONNX"),
    "state dict": (_state_dict, "package.module:function"),
    "safetensors": (_safetensors, "pass the folder"),
    "folder of safetensors": (_folder_of_safetensors, "config.json"),
    "folder of a state dict": (_folder_of_a_state_dict, "package.module:function"),
    "SavedModel": (_saved_model, "ONNX"),
    "folder of GGUF": (_folder_of_gguf, "GGUF"),
    "Lightning": (_lightning, "package.module:function"),
    "adapter": (_adapter, "nobody/nothing"),
    "empty folder": (_empty_folder, "empty"),
    "folder of models": (_folder_of_models, "checkpoint-10"),
    "nowhere": (_nowhere, "there is no"),
}


@pytest.mark.parametrize("task", [(), TEXT, IMAGE, ("--task", "tensors")], ids=str)
@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_format(home, name, task):
    """Whatever task is given with it, the message is about the format and not the task."""
    write, expected = FILES[name]
    message = _refusal(write(home), *task)
    assert expected.lower() in message.lower()
    assert "does not say what the model does" not in message
    assert "\n" not in message


def _edited(folder, file, **changes):
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_classifier("bert", folder / "classifier")
    save_tagger("bert", folder / "tagger")
    save_image_classifier("vit", folder / "images")
    return folder


def _shard_missing(folder):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _shards_of_nothing(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": ["a", "b"]}))


def _ids_beyond(folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {word: index + 500 for word, index in vocabulary.items()}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def _token_added(folder):
    """The usual mistake: a token was added, but the embedding was not enlarged."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    count = len(tokenizer["model"]["vocab"])
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    tokenizer["added_tokens"].append({"id": count, "content": "parcel", **flags})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def _unknown_architecture(folder):
    _edited(folder, "config.json", model_type="quantum_bert", architectures=["QuantumBert"])


def _no_architecture(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["model_type"]
    (folder / "config.json").write_text(json.dumps(config))


def _no_weights(folder):
    (folder / "model.safetensors").unlink()


def _weights_of_zeros(folder):
    (folder / "model.safetensors").write_bytes(b"\x00" * 100)


def _other_sizes(folder):
    _edited(folder, "config.json", hidden_size=64)


def _tokenizer_is_a_list(folder):
    (folder / "tokenizer.json").write_text("[]")


def _pointer(folder):
    """The file that git leaves without git-lfs."""
    (folder / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4665a5ea\nsize 437951328\n"
    )


def _tf_weights(folder):
    (folder / "model.safetensors").unlink()
    (folder / "tf_model.h5").write_bytes(b"\x89HDF")


def _config_of_numbers(folder):
    _edited(folder, "config.json", num_hidden_layers="many")


def _negative(folder):
    _edited(folder, "config.json", vocab_size=-3)


def _adapter_beside(folder):
    (folder / "model.safetensors").unlink()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "nobody/nothing"}')


TEXT_FOLDERS = {
    _shard_missing: "copy all the shards",
    _shards_of_nothing: "weight_map",
    _ids_beyond: "embedding",
    _token_added: "embedding",
    _unknown_architecture: "quantum_bert",
    _no_architecture: "model_type",
    _no_weights: "no weights",
    _weights_of_zeros: "cannot be read safely",
    _other_sizes: "other shapes than config.json",
    _tokenizer_is_a_list: "tokenizer",
    _pointer: "git lfs pull",
    _tf_weights: "tf_model.h5",
    _config_of_numbers: "config.json",
    _negative: "config.json",
    _adapter_beside: "adapter_model.safetensors",
}


@pytest.mark.parametrize("spoil", TEXT_FOLDERS, ids=lambda spoil: spoil.__name__.strip("_"))
def test_a_text_folder_that_cannot_be_converted(home, models, spoil):
    shutil.copytree(models / "classifier", home / "m")
    spoil(home / "m")
    message = _refusal(home / "m", *TEXT)
    assert TEXT_FOLDERS[spoil].lower() in message.lower()
    assert "\n" not in message


def test_a_folder_for_another_task_says_which(home, models):
    assert "--task token-classification" in _refusal(models / "tagger", *TEXT)
    assert "--task text-classification" in _refusal(models / "classifier", *IMAGE)
    assert "config.json" in _refusal(models / "classifier", "--task", "tensors")


def _no_size(folder):
    _edited(folder, "preprocessor_config.json", size={})


def _nonsense_mean(folder):
    _edited(folder, "preprocessor_config.json", image_mean=["a", "b", "c"])


def _processor_of_nobody(folder):
    _edited(folder, "preprocessor_config.json", image_processor_type="QuantumImageProcessor")


def _two_channels(folder):
    _edited(folder, "preprocessor_config.json", image_mean=[0.5, 0.5], image_std=[0.5, 0.5])


IMAGE_FOLDERS = {
    _no_size: "size",
    _nonsense_mean: "image_mean",
    _processor_of_nobody: "QuantumImageProcessor",
    _two_channels: "image_mean",
}


@pytest.mark.parametrize("spoil", IMAGE_FOLDERS, ids=lambda spoil: spoil.__name__.strip("_"))
def test_an_image_folder_that_cannot_be_converted(home, models, spoil):
    shutil.copytree(models / "images", home / "m")
    spoil(home / "m")
    message = _refusal(home / "m", *IMAGE)
    assert IMAGE_FOLDERS[spoil] in message
    assert "\n" not in message


def _lfs(name):
    return _file(name, b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")


def _folder_with(**files):
    def write(folder):
        for name, text in files.items():
            path = folder / "m" / name.replace("__", "/").replace("_dot_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return folder / "m"

    return write


def _ring(name):
    def write(folder):
        (folder / name).symlink_to(folder / f"other{name}")
        (folder / f"other{name}").symlink_to(folder / name)
        return folder / name

    return write


def _pipe(folder):
    os.mkfifo(folder / "m.onnx")
    return folder / "m.onnx"


def _list_in_skops(folder):
    import skops.io

    skops.io.dump([1, 2], folder / "m.skops")
    return folder / "m.skops"


OTHERS = {
    "a name that is too long": (lambda folder: "x" * 5000 + ".onnx", "too long"),
    "an address": (lambda folder: "https://example.org/m.onnx", "download it first"),
    "an address of a store": (lambda folder: "s3://bucket/m", "download it first"),
    "nothing": (lambda folder: "", "no source was given"),
    "a NUL": (lambda folder: "a\0b.onnx", "check the path"),
    "a ring of links": (_ring("m"), "symbolic links"),
    "a ring of links to a graph": (_ring("m.onnx"), "symbolic links"),
    "a ring of links to a table": (_ring("m.skops"), "symbolic links"),
    "a link to nowhere": (
        lambda folder: (folder / "m.onnx").symlink_to(folder / "gone") or folder / "m.onnx",
        "No such file",
    ),
    "a pipe": (_pipe, "not a file"),
    "a device": (lambda folder: "/dev/null", "not a file"),
    "an empty graph": (_file("m.onnx", b""), "is empty"),
    "an empty table": (_file("m.skops", b""), "is empty"),
    "an empty booster": (_file("m.json", b""), "is empty"),
    "a pointer for a graph": (_lfs("m.onnx"), "git lfs pull"),
    "a pointer for a table": (_lfs("m.skops"), "git lfs pull"),
    "a pointer for a booster": (_lfs("m.json"), "git lfs pull"),
    "config.json itself": (_file("config.json", b"{}"), "pass the folder"),
    "an index of shards": (_file("model.safetensors.index.json", b"{}"), "pass the folder"),
    "an unknown ending": (_file("m.abc"), "not in a known format"),
    "no ending": (_file("model"), "not in a known format"),
    "ORT": (_file("m.ort"), "compiled"),
    "RKNN": (_file("m.rknn"), "compiled"),
    "ONNX as text": (_file("m.onnxtxt"), "onnx.save"),
    "Python": (_file("m.py"), "package.module:function"),
    "a notebook": (_file("m.ipynb"), "package.module:function"),
    "CatBoost, symmetric trees": (
        _file("m.json", b'{"features_info": {}, "oblivious_trees": [], "model_info": {}}'),
        "is a CatBoost model, which has no converter: save it with save_model('model.onnx'",
    ),
    "CatBoost, other trees": (
        _file("m.json", b'{"features_info": {}, "trees": [], "scale_and_bias": [1, [0]]}'),
        "is a CatBoost model, which has no converter: save it with save_model('model.onnx'",
    ),
    "CatBoost's own format": (_file("m.cbm"), "remove the ZipMap"),
    "LightGBM's dump": (_file("m.json", b'{"tree_info": []}'), "booster_.save_model"),
    "old XGBoost": (_file("m.model"), "save_model('model.json')"),
    "R": (_file("m.rds"), "R's own form"),
    "fastText": (_file("m.ftz"), "word vectors"),
    "llamafile": (_file("m.llamafile"), "GGUF"),
    "MLflow": (_folder_with(MLmodel="x", model_dot_pkl="x"), "MLflow"),
    "diffusers": (_folder_with(model_index_dot_json="{}"), "diffusers"),
    "spaCy": (_folder_with(meta_dot_json="{}", config_dot_cfg="[nlp]"), "spaCy"),
    "AutoGluon": (_folder_with(predictor_dot_pkl="x", metadata_dot_json="{}"), "AutoGluon"),
    "a Triton model": (_folder_with(config_dot_pbtxt="x"), "tidegate publish"),
    "a Triton repository": (_folder_with(a__config_dot_pbtxt="x"), "tidegate publish"),
    "a folder of any JSON": (_folder_with(notes_dot_json="{}"), "no known model"),
    "Core ML's folder": (
        lambda folder: (
            (folder / "m.mlpackage" / "Data").mkdir(parents=True) or folder / "m.mlpackage"
        ),
        "Core ML",
    ),
    "model2vec alone": (
        _folder_with(config_dot_json='{"model_type": "model2vec"}', model_dot_safetensors="x"),
        "model2vec",
    ),
    "a list in skops": (_list_in_skops, "not an estimator"),
    "nesting without end": (_file("m.json", b"[" * 100_000), "not an XGBoost model"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_sources_that_cannot_be_converted(home, name):
    write, expected = OTHERS[name]
    message = _refusal(write(home), *(("--task", "embedding") if "model2vec" in name else ()))
    assert expected.lower() in message.lower()
    assert "does not say what the model does" not in message
    assert "Stack trace" not in message
    assert "\n" not in message


def test_the_ending_of_a_graph_may_be_in_capitals(home):
    from tidegate.app.task_registry import TASKS, task_of

    linear(home / "m.onnx").rename(home / "M.ONNX")
    assert task_of(str(home / "M.ONNX")) == "tensors"
    from converters.task import ConversionRequest

    assert (
        TASKS["tensors"]
        .open_task(ConversionRequest("m", str(home / "M.ONNX")))
        .metadata()["inputs"]
    )


def _domain(model):
    model.graph.node[0].domain = "com.acme"
    model.opset_import.append(helper.make_opsetid("com.acme", 1))


def _cut(model):
    model.graph.initializer[0].raw_data = b"\0" * 3


def _ring_of_nodes(model):
    model.graph.node[0].input[0] = model.graph.node[-1].output[0]


@pytest.mark.parametrize(
    ("spoil", "remedy"),
    [(_domain, "never loaded"), (_cut, "damaged"), (_ring_of_nodes, "invalid or damaged")],
)
def test_the_remedy_for_a_graph_that_does_not_run_fits_the_reason(home, spoil, remedy):
    model = onnx.load(linear(home / "m.onnx"))
    spoil(model)
    (home / "m.onnx").write_bytes(model.SerializeToString())
    message = _refusal(home / "m.onnx")
    assert remedy in message
    assert "opset that this version has" not in message

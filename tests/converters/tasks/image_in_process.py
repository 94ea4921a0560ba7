"""A pipeline of our own steps in this process, instead of a Triton: shows in milliseconds what a
fault in a step or a graph does to the proof."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from tritonclient.utils import InferenceServerException

from converters.conversion import ConversionOptions, Converted, convert
from converters.proof.reference import Reference
from converters.task import ConversionRequest
from converters.tasks.image_classification.checks import Graph
from converters.tasks.image_classification.efficientnet import ImageClassification
from converters.tasks.image_classification.samples import image_samples
from ensembles.steps import decode_image
from ensembles.steps.top_labels import TopLabels
from modelspec.golden import Golden
from modelspec.parameters import GOLDEN_PARAMETER

SHOWN = (
    "camera",
    "chelsea",
    "coffee-rgb",
    "coffee-exif6",
    "coffee-exif8-jpeg",
    "coffee-webp-lossless",
    "coffee-alpha",
    "coffee-small",
    "flower-grey",
    "flower-grey16",
    "flower-palette",
    "flower-cmyk",
    "motorcycle-half",
    "flower-large",
    # Other subjects: the original's logits must vary as much as they do over all samples.
    "astronaut-half",
    "camera-half",
    "china-half",
    "clock-half",
    "coins-half",
    "hubble-half",
    "page-half",
    "rocket-half",
)


class FewImages(ImageClassification):
    def default_samples(self):
        return [sample for sample in image_samples() if sample.name in SHOWN]

    def self_test(self, engine, reference, precision):
        """The faults are planted in the conversion of all samples."""
        return []


def few_converted() -> Converted:
    """EfficientNet-Lite0, proved only on ``SHOWN``; from the cache after the first time."""
    task = FewImages(ConversionRequest("image_classification", "image_classification"))
    return convert(task, ConversionOptions(), lambda text: None)


class Tensor:
    """Replaces tritonclient's InferInput."""

    def __init__(self, name: str, shape: list[int], datatype: str) -> None:
        self.shape = shape

    def set_data_from_numpy(self, values: np.ndarray) -> None:
        assert list(values.shape) == self.shape
        self.values = values


@dataclass
class InProcess:
    """Replaces ``ServedClient``; ``spoil_*`` change what a step returns."""

    reference: Reference
    graph: Graph
    golden: Golden
    labels: list[str] = field(default_factory=list)
    spoil_pixels: Callable[[np.ndarray], np.ndarray] = lambda pixels: pixels
    spoil_labels: Callable[[Any, Any], Any] = lambda label, score: (label, score)

    def __post_init__(self) -> None:
        document = json.loads((self.reference.folder / "pre" / "preprocess.json").read_text())
        self._transform = decode_image.Transform(document)
        self._decoded_images: dict[bytes, np.ndarray] = {}  # each is asked for five times
        metadata = self.reference.metadata
        self._label = TopLabels(
            self.labels or metadata["labels"], metadata["top_k"], metadata["function"]
        )

    def __enter__(self) -> "InProcess":
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing is open."""

    def infer(self, model: str, inputs: list[Tensor]) -> Any:
        values = inputs[0].values
        models = {"_pre": self._decoded, "_post": self._labelled, "": self._whole}
        try:
            tensors = models[model.removeprefix(self.reference.name)](values)
        except (decode_image.InvalidImage, ValueError) as error:
            raise InferenceServerException(str(error)) from error
        return SimpleNamespace(as_numpy=tensors.get)

    def config(self, model: str) -> Any:
        golden = SimpleNamespace(string_value=self.golden.to_json())
        return SimpleNamespace(parameters={GOLDEN_PARAMETER: golden})

    def _decoded(self, images: np.ndarray) -> dict[str, np.ndarray]:
        return {"pixels": self.spoil_pixels(np.stack([*map(self._pixels, images.flat)]))}

    def _pixels(self, image: bytes) -> np.ndarray:
        if image not in self._decoded_images:
            self._decoded_images[image] = decode_image.prepare(image, self._transform)
        return self._decoded_images[image]

    def _labelled(self, logits: np.ndarray) -> dict[str, np.ndarray]:
        label, score = self.spoil_labels(*self._label(logits))
        return {"label": label, "score": score}

    def _whole(self, images: np.ndarray) -> dict[str, np.ndarray]:
        return self._labelled(self.graph(self._decoded(images)["pixels"]))

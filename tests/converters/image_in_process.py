"""A pipeline of our own steps in this process, in the place of a Triton: what a fault in a step or
a graph does to the proof shows in milliseconds."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from tritonclient.utils import InferenceServerException

from converters.conversion import Converted, Variant, convert
from converters.pictures.image_classification import ImageClassification
from converters.pictures.proof import Graph
from converters.pictures.samples import picture_samples
from converters.task import Case, Order
from ensembles.steps import decode_image
from ensembles.steps.top_labels import TopLabels
from modelspec.golden import GOLDEN_PARAMETER, Golden

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
    # What else there is to see: the original's answers must lie as far apart as they do.
    "astronaut-half",
    "camera-half",
    "china-half",
    "clock-half",
    "coins-half",
    "hubble-half",
    "page-half",
    "rocket-half",
)


class FewPictures(ImageClassification):
    def default_samples(self):
        return [sample for sample in picture_samples() if sample.name in SHOWN]


def few_converted() -> Converted:
    """EfficientNet-Lite0, proved on ``SHOWN`` only; from the cache after the first time."""
    task = FewPictures(Order("image_classification", "image_classification"))
    return convert(task, Variant(), lambda text: None)


class Tensor:
    """Stands for tritonclient's InferInput."""

    def __init__(self, name: str, shape: list[int], datatype: str) -> None:
        self.shape = shape

    def set_data_from_numpy(self, values: np.ndarray) -> None:
        assert list(values.shape) == self.shape
        self.values = values


@dataclass
class InProcess:
    """Stands for tritonclient's InferenceServerClient; ``spoil_*`` change what a part gives."""

    case: Case
    graph: Graph
    golden: Golden
    labels: list[str] = field(default_factory=list)
    spoil_pixels: Callable[[np.ndarray], np.ndarray] = lambda pixels: pixels
    spoil_answer: Callable[[Any, Any], Any] = lambda label, score: (label, score)

    def __post_init__(self) -> None:
        document = json.loads((self.case.folder / "pre" / "preprocess.json").read_text())
        self._transform = decode_image.Transform(document)
        facts = self.case.facts
        self._label = TopLabels(self.labels or facts["labels"], facts["top_k"], facts["function"])

    def __enter__(self) -> "InProcess":
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing is open."""

    def infer(self, model: str, inputs: list[Tensor], client_timeout: float) -> Any:
        values = inputs[0].values
        parts = {"_pre": self._decoded, "_post": self._labelled, "": self._whole}
        try:
            tensors = parts[model.removeprefix(self.case.name)](values)
        except (decode_image.InvalidPicture, ValueError) as error:
            raise InferenceServerException(str(error)) from error
        return SimpleNamespace(as_numpy=tensors.get)

    def get_model_config(self, model: str) -> Any:
        golden = SimpleNamespace(string_value=self.golden.to_json())
        return SimpleNamespace(config=SimpleNamespace(parameters={GOLDEN_PARAMETER: golden}))

    def _decoded(self, pictures: np.ndarray) -> dict[str, np.ndarray]:
        rows = [decode_image.prepare(each, self._transform) for each in pictures.flat]
        return {"pixels": self.spoil_pixels(np.stack(rows))}

    def _labelled(self, logits: np.ndarray) -> dict[str, np.ndarray]:
        label, score = self.spoil_answer(*self._label(logits))
        return {"label": label, "score": score}

    def _whole(self, pictures: np.ndarray) -> dict[str, np.ndarray]:
        return self._labelled(self.graph(self._decoded(pictures)["pixels"]))

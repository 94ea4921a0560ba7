"""What every task that begins with an image shares: samples, graph, proof and golden sample."""

import base64
import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from converters.cache import Progress
from converters.export.torch2onnx import export_image_model
from converters.proof.checks import Check
from converters.proof.closeness import Closeness
from converters.proof.exercised import label_lines, spread_lines
from converters.proof.reference import Feed, Reference
from converters.proof.runner import OpenRunner, onnx_runner
from converters.sources.image_rules import COLOURS
from converters.task import Eager, Task, TorchModule
from converters.tasks.image_classification.checks import (
    Graph,
    failed,
    graph_checks,
    parity_checks,
    scores_closeness,
)
from converters.tasks.image_classification.sample_files import read_images
from converters.tasks.image_classification.samples import Sample
from converters.tasks.image_classification.served import served_checks
from modelspec.golden import Golden

SAMPLES, REFERENCE_DATA = "samples", "reference_data"
TOP_K = 5
# The golden image is stored in the pipeline's config.pbtxt and sent with every probe.
GOLDEN_LIMIT_BYTES = 16 << 10
# The probe may run on another machine, whose arithmetic rounds differently.
GOLDEN_TOLERANCE = 1e-3


class ImageTask(Task):
    """A classifier whose graph takes ``pixels`` FP32 [n, channels, height, width] and returns
    ``logits`` FP32 [n, labels].

    Answers: ``names`` of the n images in ``folder/samples``; ``duplicates``, for each the name of
    the image that must have the same scores ("" for most); the original's ``pixels``, ``logits``
    and ``scores``.
    """

    name: ClassVar[str] = "image-classification"

    @property
    @abstractmethod
    def labels(self) -> Sequence[str]:
        """The classes' names, in the model's order."""

    @property
    @abstractmethod
    def function(self) -> str:
        """The function that turns logits into scores: ``softmax`` or ``sigmoid``."""

    @property
    @abstractmethod
    def transform(self) -> Mapping[str, Any]:
        """``preprocess.json`` of the step ``decode_image``."""

    @property
    def seen(self) -> tuple[int, int, int]:
        """Channels, height and width of the graph's input."""
        document = self.transform
        return document.get("channels", COLOURS), document["height"], document["width"]

    @property
    @abstractmethod
    def module(self) -> torch.nn.Module:
        """The original as one module, pixels -> logits, in evaluation mode."""

    @abstractmethod
    def default_samples(self) -> list[Sample]:
        """The images to use when the user gives none."""

    @abstractmethod
    def original(self, images: Sequence[Path], work_dir: Path) -> dict[str, np.ndarray]:
        """``pixels``, ``logits`` and ``scores`` of these files, from the original in a process of
        its own."""

    @cached_property
    def samples(self) -> list[Sample]:
        if self.request.samples:
            return read_images(self.request.samples)
        return self.default_samples()

    def settings(self) -> str:
        return "".join(sample.digest for sample in self.samples)

    def metadata(self) -> dict[str, Any]:
        size = dict(zip(("channels", "height", "width"), self.seen, strict=True))
        top_k = min(TOP_K, len(self.labels))
        return {"labels": list(self.labels), "function": self.function, "top_k": top_k, **size}

    def write_steps(self, folder: Path) -> None:
        document = json.dumps(self.transform, indent=1) + "\n"
        (folder / "pre" / "preprocess.json").write_text(document, encoding="utf-8")
        labels = "\n".join(self.labels) + "\n"
        (folder / "post" / "labels.txt").write_text(labels, encoding="utf-8")

    def export(self, target: Path) -> None:
        export_image_model(self.module, "pixels", self.seen, "logits", target)

    def torch_module(self) -> TorchModule:
        return TorchModule(self.module, {"pixels": torch.zeros(2, *self.seen)}, (0,), ("logits",))

    def ask(self, folder: Path, report: Progress) -> dict[str, np.ndarray]:
        report(f"{self.request.name}: {len(self.samples)} images")
        original = self.original(_written(self.samples, folder), folder)
        names = np.array([sample.name for sample in self.samples])
        duplicates = np.array([sample.duplicate for sample in self.samples])
        return {"names": names, "duplicates": duplicates, **original}

    def feeds(self, reference: Reference) -> Iterator[Feed]:
        for pixels in reference.outputs["pixels"]:
            yield {"pixels": pixels[None]}

    def prove_graph(
        self, engine: Path, reference: Reference, runner: OpenRunner = onnx_runner
    ) -> list[Check]:
        try:
            graph = Graph(engine, runner)
        except Exception as error:  # the runtimes' errors share no base class
            return [failed("the graph can be loaded", error)]
        return graph_checks(graph, reference)

    def exercised(self, reference: Reference) -> list[str]:
        outputs, tolerance = reference.outputs, reference.tolerance
        return [
            self.whose(len(outputs["names"])),
            *spread_lines("logits", outputs["logits"], tolerance),
            *label_lines(outputs["scores"], reference.metadata["labels"], tolerance),
        ]

    def few(self, reference: Reference, rows: int) -> Reference:
        indexes = np.unique(np.linspace(0, len(reference.outputs["names"]) - 1, rows).astype(int))
        outputs = {
            name: values if name.endswith("_noise") else values[indexes]
            for name, values in reference.outputs.items()
        }
        return replace(reference, outputs=outputs)

    def parity_checks(self, engine: Path, reference: Reference) -> list[Check]:
        return parity_checks(Graph(engine), reference)

    def closeness(self, engine: Path, reference: Reference) -> Closeness:
        return scores_closeness(Graph(engine), reference)

    def eager(self) -> Eager:
        return lambda feed: self.module(torch.from_numpy(feed["pixels"]))

    def golden(self, reference: Reference) -> Golden:
        """The small image that the original is surest of, with its label if that leads clearly."""
        images, scores = sample_images(reference), np.sort(reference.outputs["scores"], axis=1)
        margins = scores[:, -1] - scores[:, -2] if scores.shape[1] > 1 else np.ones(len(scores))
        small = [row for row, image in enumerate(images) if len(image) <= GOLDEN_LIMIT_BYTES]
        row = max(small, key=lambda candidate: margins[candidate])
        tolerance = max(GOLDEN_TOLERANCE, reference.tolerance.difference)
        expect: dict[str, list[Any]] = {"score": [float(scores[row, -1])]}
        if margins[row] > 2 * tolerance:
            best = int(reference.outputs["scores"][row].argmax())
            expect = {"label": [reference.metadata["labels"][best]], **expect}
        image = {"b64": base64.b64encode(images[row]).decode()}
        return Golden({"image": image}, expect, tolerance)

    def prove_served(self, address: str, reference: Reference) -> list[Check]:
        return served_checks(address, reference, sample_images(reference))


def sample_images(reference: Reference) -> list[bytes]:
    """The contents of the sample files, in the order of the arrays of ``reference.outputs``."""
    folder = reference.folder / SAMPLES
    return [(folder / str(row)).read_bytes() for row in range(len(reference.outputs["names"]))]


def _written(samples: Sequence[Sample], folder: Path) -> list[Path]:
    """Write the samples and return the files for the original. Those for the served pipeline are in
    ``folder/samples``, named by number, since a user's file may have any name."""
    paths = []
    for folder_name in (SAMPLES, REFERENCE_DATA):
        (folder / folder_name).mkdir()
    for row, sample in enumerate(samples):
        path = folder / SAMPLES / str(row)
        path.write_bytes(sample.data)
        if sample.reference_data:
            path = folder / REFERENCE_DATA / str(row)
            path.write_bytes(sample.reference_data)
        paths.append(path)
    return paths

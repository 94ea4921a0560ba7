"""The task ``image-classification``: a Hugging Face folder with any such transformers model."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
import torch

from converters.errors import ExportFailed, SourceRefused
from converters.sources.huggingface import HuggingFaceFolder
from converters.sources.image_presets import channels_of, write_preset
from converters.sources.image_processor import (
    open_processor,
    require_no_processor,
    transform,
)
from converters.sources.image_rules import GREY
from converters.sources.model_card import card_of
from converters.task import ConversionRequest
from converters.tasks.image_classification import reference as pipeline_reference
from converters.tasks.image_classification.image_task import ImageTask
from converters.tasks.image_classification.samples import Sample, few_image_samples


class PixelModel(torch.nn.Module):
    """Pixels FP32 [n, channels, height, width] -> the head's logits FP32 [n, labels]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(pixel_values=pixels).logits
        return logits


class HuggingFaceImages(ImageTask):
    """Everything comes from the folder: weights, labels, preprocessing, function."""

    options: ClassVar[tuple[str, ...]] = ("preprocess",)
    auto_class: ClassVar[str] = "AutoModelForImageClassification"

    def __init__(self, request: ConversionRequest) -> None:
        super().__init__(request)
        self.source = HuggingFaceFolder.open(Path(request.source))
        self.source.require_head(self.name, self.auto_class)
        self._preset = request.options.get("preprocess", "")
        self._transform = transform(self._processor(), channels_of(self.source.config))
        self._labels = self.source.labels(distinct=False)
        self._function = _function(self.source.config, len(self._labels))

    def _processor(self) -> object:
        """transformers' image processor: the folder's, or that of ``--preprocess`` where the folder
        has none."""
        if not self._preset:
            return open_processor(self.source)
        require_no_processor(self.source)
        with TemporaryDirectory(prefix="tidegate-preset-") as folder:
            write_preset(self._preset, self.source.config, Path(folder))
            return open_processor(HuggingFaceFolder(Path(folder), self.source.config))

    @property
    def labels(self) -> Sequence[str]:
        return self._labels

    @property
    def function(self) -> str:
        return self._function

    @property
    def transform(self) -> Mapping[str, Any]:
        return self._transform

    @cached_property
    def module(self) -> PixelModel:
        """SourceRefused when the model does not run on images from its own preprocessing."""
        from transformers import AutoModelForImageClassification

        module = PixelModel(self.source.model(AutoModelForImageClassification)).eval()
        self._require_logits(module)
        return module

    def files(self) -> list[Path]:
        return self.source.files()

    def card(self) -> dict[str, Any]:
        names = self.source.config.get("architectures") or [self.source.config.get("model_type")]
        card = card_of(self.source.path)
        return {**super().card(), **card, "architecture": ", ".join(map(str, names))}

    def default_samples(self) -> list[Sample]:
        return few_image_samples()

    def export(self, target: Path) -> None:
        try:
            super().export(target)
        except ExportFailed:
            # The exporter (torch 2.13) cannot decompose the fused attention of Swin and BEiT; the
            # eager one computes the same.
            self.module.model.set_attn_implementation("eager")
            super().export(target)

    def original(self, images: Sequence[Path], work_dir: Path) -> dict[str, np.ndarray]:
        grey = self.seen[0] == GREY
        if not self._preset:
            return pipeline_reference.classify(self.source.path, images, work_dir, grey=grey)
        with TemporaryDirectory(prefix="tidegate-preset-") as folder:
            write_preset(self._preset, self.source.config, Path(folder))
            return pipeline_reference.classify(
                self.source.path, images, work_dir, Path(folder), grey
            )

    def _require_logits(self, module: PixelModel) -> None:
        """Raise SourceRefused unless the head, on images of the right size, has one output per
        label."""
        channels, height, width = self.seen
        colour_mode = "grey" if channels == GREY else "RGB"
        images = f"{colour_mode} images of {height}x{width}, which is what its preprocessing gives"
        try:
            with torch.no_grad():
                shape = tuple(module(torch.zeros(2, *self.seen)).shape)
        except Exception as error:  # a model may raise anything on an input of the wrong shape
            reason = " ".join(str(error).split())[:200]
            raise SourceRefused(
                f"{self.source.path} does not run on {images} ({reason}): config.json and "
                "preprocessor_config.json must belong to one model"
            ) from error
        if shape != (2, len(self.labels)):
            raise SourceRefused(
                f"{self.source.path} returns {shape} for two {images}, and has "
                f"{len(self.labels)} labels: id2label in config.json must name every output of the "
                "head"
            )


def _function(config: Mapping[str, object], labels: int) -> str:
    """The function that transformers' own pipeline would choose."""
    problem_type = config.get("problem_type")
    if problem_type == "regression":
        raise SourceRefused(
            "the model's problem_type is regression, whose output is a number and not a label: "
            "give an image-classification model"
        )
    return "sigmoid" if problem_type == "multi_label_classification" or labels == 1 else "softmax"

"""The task ``image-classification``: a Hugging Face folder with any such model of transformers."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
import torch

from converters.errors import ExportFailed, SourceRefused
from converters.image import pipeline_oracle as image_pipeline_oracle
from converters.image.samples import Sample, few_image_samples
from converters.image.task import ImageTask
from converters.sources.huggingface import HuggingFaceFolder
from converters.sources.image_presets import channels_of, write_preset
from converters.sources.image_processor import (
    open_processor,
    require_no_processor,
    transform,
)
from converters.sources.image_rules import GREY
from converters.task import ConversionRequest


class PixelModel(torch.nn.Module):
    """Pixels FP32 [n, channels, height, width] -> the head's logits FP32 [n, labels]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(pixel_values=pixels).logits
        return logits


class HuggingFaceImages(ImageTask):
    """Everything is carried over from the folder: weights, labels, preprocessing, function."""

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

    def _processor(self) -> Any:
        """transformers' own: the folder's, or that of ``--preprocess`` where it has none."""
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
        """SourceRefused when it does not run on what its own preprocessing gives."""
        from transformers import AutoModelForImageClassification

        module = PixelModel(self.source.model(AutoModelForImageClassification)).eval()
        self._require_logits(module)
        return module

    def files(self) -> list[Path]:
        return self.source.files()

    def card(self) -> dict[str, Any]:
        names = self.source.config.get("architectures") or [self.source.config.get("model_type")]
        return {**super().card(), "architecture": ", ".join(map(str, names))}

    def default_samples(self) -> list[Sample]:
        return few_image_samples()

    def export(self, target: Path) -> None:
        try:
            super().export(target)
        except ExportFailed:
            # The fused attention of Swin and BEiT cannot be taken apart by the exporter (torch
            # 2.13); written out it computes the same.
            self.module.model.set_attn_implementation("eager")
            super().export(target)

    def original(self, images: Sequence[Path], work_dir: Path) -> dict[str, np.ndarray]:
        grey = self.seen[0] == GREY
        if not self._preset:
            return image_pipeline_oracle.classify(self.source.path, images, work_dir, grey=grey)
        with TemporaryDirectory(prefix="tidegate-preset-") as folder:
            write_preset(self._preset, self.source.config, Path(folder))
            return image_pipeline_oracle.classify(
                self.source.path, images, work_dir, Path(folder), grey
            )

    def _require_logits(self, module: PixelModel) -> None:
        """The head has as many outputs as there are labels, on images of the right size."""
        channels, height, width = self.seen
        colours = "grey" if channels == GREY else "RGB"
        what = f"{colours} images of {height}x{width}, which is what its preprocessing gives"
        try:
            with torch.no_grad():
                shape = tuple(module(torch.zeros(2, *self.seen)).shape)
        except Exception as error:  # a model may raise anything on what does not fit it
            reason = " ".join(str(error).split())[:200]
            raise SourceRefused(
                f"{self.source.path} does not run on {what} ({reason}): config.json and "
                "preprocessor_config.json must be those of one model"
            ) from error
        if shape != (2, len(self.labels)):
            raise SourceRefused(
                f"{self.source.path} answers {shape} to two {what}, and has {len(self.labels)} "
                "labels: id2label in config.json must name every output of the head"
            )


def _function(config: Mapping[str, Any], labels: int) -> str:
    """As transformers' own pipeline chooses it."""
    problem = config.get("problem_type")
    if problem == "regression":
        raise SourceRefused(
            "the model's problem_type is regression, whose answer is a number and no label: an "
            "image-classification model is needed"
        )
    return "sigmoid" if problem == "multi_label_classification" or labels == 1 else "softmax"

"""Small image classifiers like a user's: real architectures, random weights, each with the image
processor that transformers saves beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

LABELS = ("cat", "dog", "crane", "crane", "茶")  # ImageNet has two cranes as well
SIDE = 64
_VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": SIDE,
    "patch_size": 16,
}
_STAGES = {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1], "image_size": SIDE}
_SWIN = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
_RESNET = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1]}
_EFFICIENTNET = {
    "width_coefficient": 0.25,
    "depth_coefficient": 0.3,
    "hidden_dim": 320,
    "image_size": SIDE,
}
_LEVIT = {"hidden_sizes": [16, 32, 48], "num_attention_heads": [2, 2, 2], "key_dim": [8, 8, 8]}
_MOBILEVIT = {"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 24, 32, 64]}
_SHORTER = {"size": {"shortest_edge": 72}, "crop_size": {"height": SIDE, "width": SIDE}}
_SQUARE = {"size": {"height": SIDE, "width": SIDE}}

# Architecture -> the model's class, its config, the processor's class and its settings.
ARCHITECTURES: Mapping[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "vit": ("ViT", _VIT, "ViT", _SQUARE),
    "deit": ("DeiT", _VIT, "DeiT", _SHORTER),
    "beit": ("Beit", _VIT, "Beit", _SQUARE),
    "convnext": ("ConvNext", _STAGES, "ConvNext", {"size": {"shortest_edge": SIDE}}),
    "convnextv2": ("ConvNextV2", _STAGES, "ConvNext", {"size": {"shortest_edge": SIDE}}),
    "resnet": ("ResNet", _RESNET, "ConvNext", {"size": {"shortest_edge": SIDE}}),
    "regnet": ("RegNet", {**_RESNET, "groups_width": 8}, "ConvNext", {"size": 64}),
    "mobilenet_v1": ("MobileNetV1", {"depth_multiplier": 0.25}, "MobileNetV1", _SHORTER),
    "mobilenet_v2": ("MobileNetV2", {"depth_multiplier": 0.35}, "MobileNetV2", _SHORTER),
    "mobilevit": ("MobileViT", {**_MOBILEVIT, "image_size": SIDE}, "MobileViT", _SHORTER),
    "efficientnet": ("EfficientNet", _EFFICIENTNET, "EfficientNet", _SQUARE),
    "swin": ("Swin", {**_SWIN, "image_size": SIDE}, "ViT", _SQUARE),
    "levit": ("Levit", {**_LEVIT, "depths": [1, 1, 1], "image_size": SIDE}, "Levit", _SHORTER),
    "poolformer": ("PoolFormer", _STAGES, "PoolFormer", _SHORTER),
    "dinov2": ("Dinov2", _VIT, "Bit", _SHORTER),
}


def save_image_classifier(
    architecture: str, folder: Path, *, processor: Any = (), **config: Any
) -> Path:
    """A Hugging Face folder with a classifier of this architecture; ``processor`` and ``config``
    are settings to add or to change."""
    name, settings, processor_name, processor_settings = ARCHITECTURES[architecture]
    torch.manual_seed(0)
    labels = {"id2label": dict(enumerate(LABELS)), "label2id": dict.fromkeys(LABELS, 0)}
    model_config = getattr(transformers, f"{name}Config")(**{**settings, **labels, **config})
    model = getattr(transformers, f"{name}ForImageClassification")(model_config)
    _initialise(model)
    model.save_pretrained(folder)
    processor_class = getattr(transformers, f"{processor_name}ImageProcessorPil")
    processor_class(**{**processor_settings, **dict(processor)}).save_pretrained(folder)
    return folder


def _initialise(model: torch.nn.Module) -> None:
    """Outputs must differ between images for a proof to mean anything: give the model weights that
    preserve variance, and batch statistics of real activations."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
        torch.nn.init.ones_(norm.weight)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.kaiming_normal_(parameter)
        if norms:
            model.train()
            model(pixel_values=torch.randn(8, 3, SIDE, SIDE))
    model.eval()

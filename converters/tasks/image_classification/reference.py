"""Run ``transformers``' own image-classification pipeline, in a process of its own.

    python -m converters.tasks.image_classification.reference \\
        FOLDER PROCESSOR COLOURS PATHS.json ANSWERS.npz

One image at a time, through the pipeline's three stages, which gives pixels and logits as well as
scores. COLOURS is ``rgb`` or ``grey``: the pipeline itself converts every image to RGB, so a model
of one channel runs as its users run it, with the grey image passed to the processor.

The proof compares against this, never against code that Tidegate also serves with.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from converters.proof.reference_process import ask, fp32_noise, repeat_positions
from converters.proof.statefulness import require_same_again

Preprocess = Callable[[Any, str], Any]  # the pipeline and a file -> the model's inputs


def classify(
    folder: Path,
    images: Sequence[Path],
    work_dir: Path,
    processor: Path | None = None,
    grey: bool = False,
) -> dict[str, np.ndarray]:
    """``pixels`` FP32 [n, channels, height, width], ``logits`` and ``scores`` FP32 [n, labels], and
    what FP32 rounds off the latter two (``fp32_noise``). ``processor`` is the folder with
    the preprocessing, if not the model's; ``grey`` says that the model has one channel."""
    paths_file, answers_file = work_dir / "images.json", work_dir / "answers.npz"
    paths_file.write_text(json.dumps([str(path) for path in images]))
    arrays = ask(
        "converters.tasks.image_classification.reference",
        folder,
        processor or folder,
        "grey" if grey else "rgb",
        paths_file,
        answers=answers_file,
    )
    answers_file.unlink()
    return arrays


def main(
    folder: str, processor_folder: str, colour_mode: str, paths_file: str, target: str
) -> None:
    paths = json.loads(Path(paths_file).read_text())
    preprocess = _grey_inputs if colour_mode == "grey" else _rgb_inputs
    classifier = _opened(folder, processor_folder)
    pixels, logits, scores = [], [], []
    for path in paths:
        inputs = preprocess(classifier, path)
        pixels.append(inputs["pixel_values"].numpy())
        outputs = classifier.forward(inputs)
        logits.append(outputs["logits"].numpy())
        scores.append(_in_order(classifier, outputs))
    _require_stateless(folder, processor_folder, preprocess, paths, np.concatenate(logits))
    arrays = {"pixels": pixels, "logits": logits, "scores": scores}
    reported = {name: np.concatenate(rows) for name, rows in arrays.items()}
    measured = {name: reported[name] for name in ("logits", "scores")}
    noise = fp32_noise(
        measured, lambda positions: _exact(classifier, reported["pixels"][positions])
    )
    np.savez(target, **reported, **noise)


def _rgb_inputs(classifier: Any, path: str) -> Any:
    return classifier.preprocess(path)


def _grey_inputs(classifier: Any, path: str) -> Any:
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened).convert("L")
    return classifier.image_processor(images=image, return_tensors="pt")


def _exact(classifier: Any, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """``logits`` and ``scores`` in FP64 of pixels [m, channels, height, width]. The model stays in
    FP64."""
    import torch

    classifier.model.double()
    logits, scores = [], []
    for image in torch.from_numpy(pixels).double():
        outputs = classifier.forward({"pixel_values": image[None]})
        logits.append(outputs["logits"].numpy())
        scores.append(_in_order(classifier, outputs))
    return {"logits": np.concatenate(logits), "scores": np.concatenate(scores)}


def _opened(folder: str, processor_folder: str) -> Any:
    import transformers

    # The PIL backend, even where torchvision is installed: it is the one that can be served.
    auto_class: Any = transformers.AutoImageProcessor
    processor = auto_class.from_pretrained(processor_folder, backend="pil", trust_remote_code=False)
    return transformers.pipeline(
        "image-classification",
        model=folder,
        image_processor=processor,
        device="cpu",
        trust_remote_code=False,
    )


def _require_stateless(
    folder: str,
    processor_folder: str,
    preprocess: Preprocess,
    paths: Sequence[str],
    logits: np.ndarray,
) -> None:
    """Run some images again with a fresh pipeline and in reverse, and end the process where the
    logits depend on either."""
    fresh = _opened(folder, processor_folder)
    positions = repeat_positions(len(paths))
    rows = [
        fresh.forward(preprocess(fresh, paths[position]))["logits"].numpy()
        for position in positions
    ]
    require_same_again(
        "logits", logits, np.concatenate(rows), [f"image {row}" for row in range(len(paths))]
    )


def _in_order(classifier: Any, outputs: Any) -> np.ndarray:
    """The pipeline's scores FP32 [1, labels] in the model's order. The pipeline sorts them, and two
    classes may have the same label, so each class is labelled with its number meanwhile."""
    config = classifier.model.config
    id2label = config.id2label
    config.id2label = {index: str(index) for index in range(config.num_labels)}
    predictions = classifier.postprocess(outputs, top_k=config.num_labels)
    config.id2label = id2label
    scores = np.zeros((1, config.num_labels), dtype=np.float32)
    for prediction in predictions:
        scores[0, int(prediction["label"])] = prediction["score"]
    return scores


if __name__ == "__main__":
    main(*sys.argv[1:])

"""What ``transformers``' own image-classification pipeline answers, in a process of its own.

    python -m converters.image.pipeline_oracle FOLDER PROCESSOR COLOURS PATHS.json ANSWERS.npz

One image at a time, through the pipeline's three stages, so that pixels and logits are seen as
well as scores. COLOURS is ``rgb`` or ``grey``: that pipeline itself makes every image RGB, and a
model of one channel is asked as its users do, the processor given the image in grey.

The proof compares against this, never against code that Tidegate also serves with.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from converters.original import ask, fp32_noise, places_again
from converters.past import require_same_again

Show = Callable[[Any, str], Any]  # the pipeline and a file -> what the model is asked with


def classify(
    folder: Path,
    pictures: Sequence[Path],
    work_dir: Path,
    processor: Path | None = None,
    grey: bool = False,
) -> dict[str, np.ndarray]:
    """``pixels`` FP32 [n, channels, height, width], ``logits`` and ``scores`` FP32 [n, labels], and
    what FP32 rounds off of both (``original.fp32_noise``). ``processor`` is another folder than the
    model's with the preprocessing; ``grey`` a model of one channel."""
    questions, answers = work_dir / "images.json", work_dir / "answers.npz"
    questions.write_text(json.dumps([str(path) for path in pictures]))
    answered = ask(
        "converters.image.pipeline_oracle",
        folder,
        processor or folder,
        "grey" if grey else "rgb",
        questions,
        answers=answers,
    )
    answers.unlink()
    return answered


def main(folder: str, read: str, colours: str, questions: str, answers: str) -> None:
    paths = json.loads(Path(questions).read_text())
    show = _grey if colours == "grey" else _whole
    classifier = _opened(folder, read)
    pixels, logits, scores = [], [], []
    for path in paths:
        inputs = show(classifier, path)
        pixels.append(inputs["pixel_values"].numpy())
        outputs = classifier.forward(inputs)
        logits.append(outputs["logits"].numpy())
        scores.append(_in_order(classifier, outputs))
    _require_no_past(folder, read, show, paths, np.concatenate(logits))
    arrays = {"pixels": pixels, "logits": logits, "scores": scores}
    reported = {name: np.concatenate(rows) for name, rows in arrays.items()}
    measured = {name: reported[name] for name in ("logits", "scores")}
    noise = fp32_noise(
        measured, lambda positions: _exact(classifier, reported["pixels"][positions])
    )
    np.savez(answers, **reported, **noise)


def _whole(classifier: Any, path: str) -> Any:
    return classifier.preprocess(path)


def _grey(classifier: Any, path: str) -> Any:
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened).convert("L")
    return classifier.image_processor(images=image, return_tensors="pt")


def _exact(classifier: Any, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """The same of pixels [m, channels, height, width] in FP64, which the model then stays in."""
    import torch

    classifier.model.double()
    logits, scores = [], []
    for each in torch.from_numpy(pixels).double():
        outputs = classifier.forward({"pixel_values": each[None]})
        logits.append(outputs["logits"].numpy())
        scores.append(_in_order(classifier, outputs))
    return {"logits": np.concatenate(logits), "scores": np.concatenate(scores)}


def _opened(folder: str, read: str) -> Any:
    import transformers

    # The PIL form, wherever torchvision is installed too: it is the one that can be served.
    reader: Any = transformers.AutoImageProcessor
    processor = reader.from_pretrained(read, backend="pil", trust_remote_code=False)
    return transformers.pipeline(
        "image-classification",
        model=folder,
        image_processor=processor,
        device="cpu",
        trust_remote_code=False,
    )


def _require_no_past(
    folder: str, read: str, show: Show, paths: Sequence[str], logits: np.ndarray
) -> None:
    """The same once more, from a fresh one and in reverse: the answers may not depend on that."""
    fresh = _opened(folder, read)
    positions = places_again(len(paths))
    rows = [fresh.forward(show(fresh, paths[place]))["logits"].numpy() for place in positions]
    require_same_again(
        "logits", logits, np.concatenate(rows), [f"image {row}" for row in range(len(paths))]
    )


def _in_order(classifier: Any, outputs: Any) -> np.ndarray:
    """The pipeline's scores FP32 [1, labels] in the model's order: it gives them sorted, with
    labels of which two may be the same, so that each class is given its number for a name."""
    config = classifier.model.config
    named = config.id2label
    config.id2label = {index: str(index) for index in range(config.num_labels)}
    answer = classifier.postprocess(outputs, top_k=config.num_labels)
    config.id2label = named
    scores = np.zeros((1, config.num_labels), dtype=np.float32)
    for each in answer:
        scores[0, int(each["label"])] = each["score"]
    return scores


if __name__ == "__main__":
    main(*sys.argv[1:])

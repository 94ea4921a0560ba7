"""The known pipelines: what each is made of. The one place that joins declaration (``ensembles``)
and conversion (``converters``); ``tidegate.pipelines`` does the rest, the same for all.
"""

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from modelspec.layout import ENGINE_FILE
from modelspec.model import Pipeline

if TYPE_CHECKING:
    from converters.proof import Proof

PROOF_FILE = "proof.json"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Built:
    """``files`` maps a model to the files of its version folder, by the name they have there; a
    step's own module is copied without being named here. ``prove`` checks the pipeline as a Triton
    at the given gRPC address serves it."""

    pipeline: Pipeline
    files: Mapping[str, Mapping[str, Path]] = field(default_factory=dict)
    prove: Callable[[str], "Proof"] | None = None


def build_identity(say: Say) -> Built:
    from ensembles.identity_fp32 import PIPELINE

    return Built(PIPELINE)


def build_text_embedding(say: Say) -> Built:
    """Converted and proved in the cache; raises ConversionError."""
    from converters.served_proof import prove_served_embedding
    from converters.text_embedding import Recipe, convert
    from ensembles.text_embedding import BUCKETS, ENGINE, GOLDEN, PIPELINE, TOKENIZER

    name = PIPELINE.name
    recipe = Recipe(name, BUCKETS, GOLDEN.request["text"], GOLDEN.expect, GOLDEN.tolerance)
    converted = convert(recipe, say)
    oracle = converted.oracle()
    texts = [str(text) for text in oracle["texts"]]
    return Built(
        PIPELINE,
        {
            TOKENIZER.name: {"tokenizer.json": converted.tokenizer},
            ENGINE.name: {ENGINE_FILE: converted.engine, PROOF_FILE: converted.proof},
        },
        lambda address: prove_served_embedding(
            address, name, texts, oracle["vectors"], oracle["token_count"]
        ),
    )


def build_image_classification(say: Say) -> Built:
    """Converted and proved in the cache; raises ConversionError."""
    from converters.image_classification import Recipe, convert
    from converters.served_image_proof import prove_served_classification
    from ensembles import image_classification as declared

    name, golden = declared.PIPELINE.name, declared.GOLDEN
    label_file = labels_file(declared.LABELS)
    labels = tuple(label_file.read_text(encoding="utf-8").splitlines())
    picture = base64.b64decode(declared.GOLDEN_PICTURE)
    converted = convert(Recipe(name, labels, picture, golden.expect, golden.tolerance), say)
    return Built(
        declared.PIPELINE,
        {
            declared.ENGINE.name: {ENGINE_FILE: converted.engine, PROOF_FILE: converted.proof},
            declared.LABELLER.name: {"labels.txt": label_file},
        },
        lambda address: prove_served_classification(address, name, converted.asked(), labels),
    )


def labels_file(name: str) -> Path:
    """A list of labels. It is copied into a version folder, so that a rollback brings it back."""
    import ensembles

    return Path(ensembles.__path__[0]) / "labels" / name


BUILDERS: Mapping[str, Callable[[Say], Built]] = {
    "identity_fp32": build_identity,
    "text_embedding": build_text_embedding,
    "image_classification": build_image_classification,
}

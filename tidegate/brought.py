"""Models that a user brings: what a source and a task make of each other."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelspec.face import Golden
from modelspec.layout import ENGINE_FILE
from tidegate.builders import PROOF_FILE, Built, Say


@dataclass(frozen=True)
class Brought:
    """A model to convert: where it is, what it is to be called, and samples of its real input (the
    task's own small set when there are none)."""

    source: Path
    name: str
    samples: Sequence[str] | None


def build_text_classification(brought: Brought, say: Say) -> Built:
    """Converted and proved in the cache; raises ConversionError."""
    from converters.served_classification_proof import prove_served_classifier
    from converters.text_classification import convert
    from ensembles.text_classification import Declaration

    converted = convert(brought.name, brought.source, brought.samples, say)
    facts, oracle = converted.facts, converted.oracle()
    texts, scores = [str(text) for text in oracle["texts"]], oracle["scores"]
    best = int(scores[0].argmax())
    golden = Golden(
        request={"text": texts[0]},
        expect={"label": [facts["labels"][best]], "score": [float(scores[0][best])]},
        tolerance=1e-3,
    )
    card = {"model": brought.source.name, "labels": ", ".join(facts["labels"][:20])}
    pipeline = Declaration(brought.name, golden=golden, card=card, **facts).pipeline()
    pre, engine, post = pipeline.members
    return Built(
        pipeline,
        {
            pre.name: {"tokenizer.json": converted.tokenizer},
            engine.name: {ENGINE_FILE: converted.engine, PROOF_FILE: converted.proof},
            post.name: {"labels.txt": converted.labels},
        },
        lambda address: prove_served_classifier(
            address, brought.name, facts["labels"], texts, scores
        ),
    )


TASKS: Mapping[str, Callable[[Brought, Say], Built]] = {
    "text-classification": build_text_classification,
}

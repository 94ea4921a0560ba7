"""``text_classification``: classifiers of several languages behind one name."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ensembles.routed_classification import Classifier, declare
from modelspec.endpoint_schema import EndpointSchema
from modelspec.golden import Golden
from modelspec.model import Pipeline, StepSpec
from modelspec.parameters import ENDPOINT_PARAMETER, GOLDEN_PARAMETER
from serving.errors import PublishFailed
from serving.repository.model_repository import ModelRepository
from tidegate.app.composed import ask

if TYPE_CHECKING:
    from tritonclient.grpc import InferenceServerClient, InferResult

NAME = "text_classification"
# The classifiers, of those that read a language the preferred one first. Which languages each reads
# is on its card; here are those of a model whose card says none.
CLASSIFIERS: Mapping[str, Sequence[str]] = {
    "topic_classification": ("en",),
    "sentiment": ("zh", "en"),
}
CARD = {
    "task": "text-classification",
    "pipeline_tag": "text-classification",
    "license": "those of its members: see `members`",
}
LIMITS = (
    "Unless `task` names one, a text goes to the first of these that reads its language: {reads}. "
    "Another language is refused by name. The language is told by script, and among those in Latin "
    "script by py3langid, where a text of fewer than 12 letters counts as English. There is no "
    "category of Chinese news: no package that installs here has labelled articles."
)
SAMPLES = 32  # of each language
TOLD = ("en", "zh")  # the languages of which there are samples here
TOLERANCE = 1e-5  # of a score: the same graphs run, in other batches


class RoutedClassifiers:
    """The steps of each classifier are steps of this pipeline, in the versions that are active."""

    name = NAME
    members = tuple(CLASSIFIERS)
    has_their_steps = True

    def declare(self, repository: ModelRepository) -> Pipeline:
        reads = languages_read(repository)
        classifiers = [_classifier(repository, name, known) for name, known in reads.items()]
        cards = {name: _schema(repository, name).card for name in reads}
        golden = _golden(repository, classifiers[0])
        known_languages = "; ".join(f"{name} ({', '.join(known)})" for name, known in reads.items())
        card = {
            **CARD,
            "language": list(dict.fromkeys(code for known in reads.values() for code in known)),
            "reads": reads,
            "limits": LIMITS.format(reads=known_languages),
            "members": cards,
        }
        return declare(NAME, classifiers, golden, card)

    def prove(self, client: "InferenceServerClient", repository: ModelRepository) -> None:
        """PublishFailed unless it answers each sample as the member does that reads its language,
        alone and in a batch of both languages."""
        batch: list[tuple[str, str]] = []
        reads = languages_read(repository)
        for classifier, languages in reads.items():
            for language in languages:
                texts = samples(language)
                named = {"language": language, "task": classifier}
                for text in texts:
                    _compare(ask(client, NAME, [text], named), 0, text, classifier, client)
                batch += [(text, language) for text in texts[:2] if language in TOLD]
        first = {
            language: classifier
            for classifier, languages in reversed(reads.items())
            for language in languages
        }
        result = ask(client, NAME, [text for text, _ in batch])
        for row, (text, language) in enumerate(batch):
            classifier = first[language]
            _compare(result, row, text, classifier, client)


def languages_read(repository: ModelRepository) -> dict[str, list[str]]:
    """Classifier -> the codes of the languages that it reads, the preferred one first."""
    reads = {}
    for name, default in CLASSIFIERS.items():
        said = _schema(repository, name).card.get("language") or default
        languages = [said] if isinstance(said, str) else said
        reads[name] = [str(code).lower().partition("-")[0] for code in languages]
    return reads


def _classifier(repository: ModelRepository, name: str, languages: Sequence[str]) -> Classifier:
    config = repository.config(name)
    steps = tuple(
        StepSpec(step.model_name, step.model_version, dict(step.input_map), dict(step.output_map))
        for step in config.ensemble_scheduling.step
    )
    labels = next(output.dims[0] for output in config.output if output.name == "label")
    return Classifier(name, languages, labels, steps, config.max_batch_size)


def _schema(repository: ModelRepository, name: str) -> EndpointSchema:
    parameters = repository.config(name).parameters
    return EndpointSchema.parse(parameters[ENDPOINT_PARAMETER].string_value)


def _golden(repository: ModelRepository, first: Classifier) -> Golden:
    """The first classifier's own sample."""
    parameters = repository.config(first.name).parameters
    golden = Golden.parse(parameters[GOLDEN_PARAMETER].string_value)
    named = {"task": first.name, "language": first.languages[0]}
    expect = {**{name: [value] for name, value in named.items()}, **golden.expect}
    return Golden({**golden.request, **named}, expect, golden.tolerance)


def samples(language: str) -> list[str]:
    """Messages in Chinese (``zh``), else in English."""
    if language == "zh":
        from training.customer_messages import CHINESE_SENTIMENT

        return [text for text, _ in CHINESE_SENTIMENT][:SAMPLES]
    from converters.tasks.text.samples import default_texts

    return default_texts(SAMPLES)


def _compare(
    result: "InferResult",
    row: int,
    text: str,
    classifier: str,
    client: "InferenceServerClient",
) -> None:
    expected = ask(client, classifier, [text])
    label, score = (expected.as_numpy(name)[0] for name in ("label", "score"))
    actual = {name: result.as_numpy(name)[row] for name in ("task", "labels", "scores")}
    count = int(result.as_numpy("label_count")[row, 0])
    if (
        actual["task"][0] != classifier.encode()
        or actual["labels"][:count].tolist() != label.tolist()
        or not np.allclose(actual["scores"][:count], score, rtol=0, atol=TOLERANCE)
    ):
        raise PublishFailed(
            f"{text!r} is answered with {actual}, and {classifier} answers {label} {score}: "
            "nothing was published"
        )

"""Pipelines that are composed of others: their members' steps are joined as they are published,
proved together through a scratch Triton, and published as one more pipeline."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from ensembles.routed_classification import Classifier, declare
from modelspec.endpoint_schema import EndpointSchema
from modelspec.golden import Golden
from modelspec.layout import CONFIG_FILE, CONFIGS, STEP_FILE, owned_prefix
from modelspec.model import Pipeline, StepSpec
from modelspec.parameters import ENDPOINT_PARAMETER, GOLDEN_PARAMETER
from modelspec.pbtxt import render
from modelspec.staging import stage_model
from serving.errors import PublishFailed
from serving.repository.configs import with_versions
from serving.repository.model_repository import ModelRepository
from serving.triton.launch import LaunchOptions, TritonServer
from serving.triton.ports import Ports, free_ports
from tidegate.app.paths import Paths
from tidegate.app.pipelines import has_step, publish_staged, step_file
from tidegate.app.progress import Progress

if TYPE_CHECKING:
    from tritonclient.grpc import InferenceServerClient, InferResult

# Composed pipeline -> its classifiers with the languages that they read, the preferred one of a
# language first.
COMPOSED: Mapping[str, Mapping[str, Sequence[str]]] = MappingProxyType(
    {"text_classification": {"topic_classification": ("en",), "sentiment": ("zh",)}}
)
CARD = {
    "task": "text-classification",
    "limits": "English goes to topic_classification, Chinese to sentiment; another language is "
    "refused by name. The language is told by script, and among those in Latin script by "
    "py3langid, where a text of fewer than 12 letters counts as English. There is no category of "
    "Chinese news: no package that installs here has labelled articles.",
}
SAMPLES = 32  # of each language
TOLERANCE = 1e-5  # of a score: the same graphs run, in other batches
_DEADLINE_S = 120.0


@dataclass(frozen=True)
class ComposeResult:
    name: str
    version: int
    members: Mapping[str, int]  # the versions of the pipelines that it is composed of

    def lines(self) -> list[str]:
        members = ", ".join(f"{name} version {number}" for name, number in self.members.items())
        return [f"{self.name}: version {self.version} is composed of {members}"]

    def as_dict(self) -> dict[str, object]:
        """The result in plain JSON types."""
        return {"pipeline": self.name, "version": self.version, "members": dict(self.members)}


def run(name: str, paths: Paths, report: Progress) -> ComposeResult:
    """Compose the pipeline of its members as they are published now, training those that are not;
    prove and publish it. PublishFailed if it does not answer as they do."""
    repository = ModelRepository(paths.repository)
    for member in COMPOSED[name]:
        if not repository.is_published(member):
            from tidegate.app.train import run as train

            train(member, 0, paths, report)
    classifiers = [
        _classifier(repository, member, languages) for member, languages in COMPOSED[name].items()
    ]
    versions = {member: repository.active_version(member) for member in COMPOSED[name]}
    cards = {each.name: _schema(repository, each.name).card for each in classifiers}
    golden = _golden(repository, classifiers[0])
    pipeline = declare(name, classifiers, golden, {**CARD, "members": cards})
    repository.staging.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=repository.staging, prefix=owned_prefix(name)
    ) as staged_name:
        staged = ModelRepository(Path(staged_name))
        members = _stage(pipeline, classifiers, repository, staged)
        report(f"{name}: comparing it with its members through a scratch Triton")
        _prove(pipeline, classifiers, staged, paths.state)
        version = publish_staged(staged, [*members, name], repository, paths.state, report)
    return ComposeResult(name, version, versions)


def is_current(name: str, repository: ModelRepository) -> bool:
    """Whether it is published, of its members as they are now, with the current steps."""
    if not all(map(repository.is_published, (name, *COMPOSED[name]))):
        return False
    pinned = repository.pinned_members(name)
    of_members = {
        model: version
        for member in COMPOSED[name]
        for model, version in repository.pinned_members(member).items()
    }
    own = [_classifier(repository, each, languages) for each, languages in COMPOSED[name].items()]
    steps = declare(name, own, _golden(repository, own[0]), CARD).members
    return of_members.items() <= pinned.items() and all(
        has_step(repository, spec) for spec in steps
    )


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
    expect = {"task": [first.name], "language": [first.languages[0]], **golden.expect}
    return Golden(golden.request, expect, golden.tolerance)


def _stage(
    pipeline: Pipeline,
    classifiers: Sequence[Classifier],
    repository: ModelRepository,
    staged: ModelRepository,
) -> list[str]:
    """Stage its own steps, the members' steps as they are published, and, to compare with, the
    members themselves; the names of all steps."""
    for spec in pipeline.models:
        stage_model(staged.path, spec, {STEP_FILE: step_file(spec.step)} if spec.step else {})
    shared = {step.model: step.version for each in classifiers for step in each.steps}
    public = {each.name: repository.active_version(each.name) for each in classifiers}
    for model, version in {**shared, **public}.items():
        shutil.copytree(
            repository.version_folder(model, version), staged.version_folder(model, version)
        )
        if (repository.folder(model) / CONFIGS).is_dir():
            shutil.copytree(repository.folder(model) / CONFIGS, staged.folder(model) / CONFIGS)
        config = with_versions(repository.config(model), (version,))
        (staged.folder(model) / CONFIG_FILE).write_text(render(config), encoding="utf-8")
    return [*shared, *(spec.name for spec in pipeline.members)]


def _prove(
    pipeline: Pipeline,
    classifiers: Sequence[Classifier],
    staged: ModelRepository,
    work_dir: Path,
) -> None:
    """PublishFailed unless it answers each sample as the member does that reads its language, alone
    and in a batch of both languages."""
    from tritonclient.grpc import InferenceServerClient

    ports = Ports(*free_ports(3))
    with TritonServer(LaunchOptions(staged, work_dir, ports, name="scratch")) as server:
        for model in (pipeline.name, *(each.name for each in classifiers)):
            server.control.load(model)
        with InferenceServerClient(f"127.0.0.1:{ports.grpc}") as client:
            batch: list[tuple[str, Classifier]] = []
            for classifier in classifiers:
                texts = [text for language in classifier.languages for text in _samples(language)]
                batch += [(text, classifier) for text in texts[:2]]
                for text in texts:
                    language = {"language": classifier.languages[0]}
                    result = _ask(client, pipeline.name, [text], language)
                    _compare(result, 0, text, classifier, client)
            result = _ask(client, pipeline.name, [text for text, _ in batch], {})
            for row, (text, classifier) in enumerate(batch):
                _compare(result, row, text, classifier, client)


def _samples(language: str) -> list[str]:
    if language == "zh":
        from training.customer_messages import CHINESE_SENTIMENT

        return [text for text, _ in CHINESE_SENTIMENT][:SAMPLES]
    from converters.tasks.text.samples import default_texts

    return default_texts(SAMPLES)


def _compare(
    result: "InferResult",
    row: int,
    text: str,
    classifier: Classifier,
    client: "InferenceServerClient",
) -> None:
    expected = _ask(client, classifier.name, [text], {})
    label, score = (expected.as_numpy(name)[0] for name in ("label", "score"))
    actual = {name: result.as_numpy(name)[row] for name in ("task", "labels", "scores")}
    count = int(result.as_numpy("label_count")[row, 0])
    if (
        actual["task"][0] != classifier.name.encode()
        or actual["labels"][:count].tolist() != label.tolist()
        or not np.allclose(actual["scores"][:count], score, rtol=0, atol=TOLERANCE)
    ):
        raise PublishFailed(
            f"{text!r} is answered with {actual}, and {classifier.name} answers {label} {score}: "
            "nothing was published"
        )


def _ask(
    client: "InferenceServerClient", model: str, texts: Sequence[str], parameters: Mapping[str, Any]
) -> "InferResult":
    from tritonclient.grpc import InferInput

    tensor = InferInput("text", [len(texts), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([text.encode() for text in texts], dtype=object)[:, None])
    return client.infer(model, [tensor], parameters=dict(parameters), client_timeout=_DEADLINE_S)

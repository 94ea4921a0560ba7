"""From a user's files to the next version of ``smart_reply``: read, embedded with the published
pipeline that reads their language, checked, published. No restart: the pin moves as for any other
pipeline."""

import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modelspec.held import held_folder
from modelspec.layout import ENGINE_FILE, STEP_FILE
from modelspec.names import Role, member_name
from tidegate.app.paths import Paths
from tidegate.app.progress import Progress
from training.recipe import TrainingError

if TYPE_CHECKING:
    from ensembles.smart_reply import EmbeddingSteps
    from serving.publish.deployment import Deployment
    from serving.repository.model_repository import ModelRepository
    from training.knowledge_base import Evaluation, Question
    from training.knowledge_files import Entry

# By the language of the message.
UNKNOWN = {
    "en": "I don't know the answer to that. I am handing you over to a colleague.",
    "zh": "这个问题我暂时无法回答\uff0c正在为您转接人工客服。",
}
# How far the cosine of an entry with itself may be from 1: the graph rounds.
SAME = 1e-3
LIMITS = (
    "It says only what its entries say, in their words. Thresholds depend on how the entries are "
    "written: measure your own with --messages."
)
SHORT = 100  # characters


@dataclass(frozen=True)
class Embedding:
    """What entries and messages are compared by: a published pipeline. ``license`` is that of the
    default entries."""

    pipeline: str
    language: Sequence[str]
    base_model: str
    limits: str
    license: str


# By the language of the entries.
EMBEDDINGS: Mapping[str, Embedding] = {
    "en": Embedding(
        "text_embedding",
        ("en",),
        "sentence-transformers/all-MiniLM-L6-v2",
        "It reads English only.",
        "BSD-3-Clause (chatterbot-corpus)",
    ),
    "zh": Embedding(
        "multilingual_embedding",
        ("zh", "en"),
        "intfloat/multilingual-e5-small",
        "It reads Chinese and English. Of three Chinese messages in other words than the entry's, "
        "the right entry is the nearest for two: pass many to a colleague.",
        "Apache-2.0",
    ),
}


@dataclass(frozen=True)
class KnowledgeBase:
    """``vectors`` FP32 [entries, width], of length 1, of what each entry is compared by."""

    entries: Sequence["Entry"]
    vectors: np.ndarray
    evaluation: "Evaluation"
    embedding: Embedding
    is_own: bool  # built from the user's files
    is_measured: bool  # on messages for these entries

    def as_dict(self) -> dict[str, Any]:
        """What the step reads."""
        return {
            "entries": [asdict(entry) for entry in self.entries],
            **asdict(self.evaluation.thresholds),
            "unknown": UNKNOWN,
        }

    def card(self) -> dict[str, Any]:
        sources = sorted({entry.source.partition("#")[0] for entry in self.entries})
        metrics = [asdict(metric) for metric in self.evaluation.metrics]
        base = {
            **({} if self.is_own else {"license": self.embedding.license}),
            "language": [*self.embedding.language],
            "embedding": self.embedding.pipeline,
            "entries": len(self.entries),
            "datasets": sources
            if len(sources) <= 8
            else [*sources[:8], f"and {len(sources) - 8} more"],
            "base_model": self.embedding.base_model,
            "thresholds": asdict(self.evaluation.thresholds),
            "limits": f"{LIMITS} {self.embedding.limits}",
        }
        if self.is_measured:
            return {**base, "metrics": metrics}
        return {**base, "thresholds_from": "the default knowledge base, not from these entries"}


class Embedder:
    """A published embedding pipeline, in this process: its tokenizer and its graph."""

    def __init__(self, repository: "ModelRepository", pipeline: str) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        from ensembles.embedding import VECTOR
        from ensembles.smart_reply import EmbeddingSteps
        from ensembles.steps.tokenize_text import BucketTokenizer
        from modelspec.parameters import BUCKETS_PARAMETER

        repository.require_published(pipeline)
        pins = repository.pinned_members(pipeline)
        tokenizer = _member(pins, member_name(pipeline, Role.PRE))
        engine = next(position for position in pins.items() if position != tokenizer)
        parameters = repository.config(tokenizer[0]).parameters
        buckets = parameters[BUCKETS_PARAMETER].string_value.split(",")
        file = repository.version_folder(*tokenizer) / "tokenizer.json"
        pad_id = int(parameters["pad_id"].string_value or 0)
        self._tokenize = BucketTokenizer(
            Tokenizer.from_file(str(file)), [int(length) for length in buckets], pad_id
        )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        graph = repository.version_folder(*engine) / ENGINE_FILE
        self._session = onnxruntime.InferenceSession(
            str(graph), options, providers=["CPUExecutionProvider"]
        )
        self._output = VECTOR
        width = int(repository.config(engine[0]).output[0].dims[-1])
        batch = repository.config(pipeline).max_batch_size
        self.steps: EmbeddingSteps = EmbeddingSteps(tokenizer, engine, width, batch)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """FP32 [n, width], each of length 1. A text that is too long is cut."""
        vectors = []
        for text in texts:
            tokens = self._tokenize([text.encode()], True)
            feed = {"input_ids": tokens.ids, "attention_mask": tokens.mask}
            vectors.append(self._session.run([self._output], feed)[0][0])
        matrix = np.stack(vectors).astype(np.float32)
        return np.asarray(matrix / np.linalg.norm(matrix, axis=1, keepdims=True), dtype=np.float32)


def _member(pins: Mapping[str, int], name: str) -> tuple[str, int]:
    """The member of this name, or its latest generation (``NAME.g2``)."""
    return next(
        (model, version) for model, version in pins.items() if model.partition(".")[0] == name
    )


def build(
    files: Sequence[Path],
    messages: Path | None,
    language: str | None,
    paths: Paths,
    report: Progress,
) -> Callable[["Deployment"], tuple[str, int]]:
    """The change that publishes a knowledge base of these files, or the default one of the
    language; without ``language``, the entries tell theirs. Raises TrainingError; nothing is
    changed then."""
    from serving.repository.model_repository import ModelRepository
    from training.knowledge_base import default_entries, read_messages
    from training.knowledge_files import distinct, read_entries

    if files:
        entries, contradictions = distinct(entry for path in files for entry in read_entries(path))
        if contradictions:
            report(
                f"{contradictions} entries ask what an earlier one asks and answer otherwise: the "
                "earlier answer counts"
            )
    else:
        entries = default_entries(language or "en")
    asked = read_messages(messages, entries) if messages else None
    chosen = language or language_of(entries)
    embedding = EMBEDDINGS[chosen]
    _report_scripts(entries, embedding, report)
    _require_embedding(embedding.pipeline, ModelRepository(paths.repository), paths, report)

    def change(deployment: "Deployment") -> tuple[str, int]:
        embed = Embedder(deployment.repository, embedding.pipeline)
        report(f"embedding {len(entries)} entries with {embedding.pipeline}")
        knowledge = _measured(entries, bool(files), asked, embed, chosen)
        for metric in knowledge.evaluation.metrics if knowledge.is_measured else ():
            report(f"{metric.name} {metric.value:.3f} on {metric.data}")
        thresholds = knowledge.evaluation.thresholds
        report(
            f"confident from {thresholds.confident:.2f}, possible from {thresholds.possible:.2f}"
        )
        return publish(knowledge, embed.steps, deployment)

    return change


def language_of(entries: Sequence["Entry"]) -> str:
    """``zh`` if one of them is in Chinese, which the English embedding cannot tell apart; else
    ``en``."""
    scripts = _scripts(entries)
    return "zh" if scripts["CJK"] else "en"


def _scripts(entries: Sequence["Entry"]) -> Counter[str]:
    """How many entries have most of their letters in each script: ``CJK`` or ``LATIN``, or the
    beginning of the name that Unicode gives its letters. Those without letters are in none."""
    scripts = (
        Counter(
            unicodedata.name(letter, "?").split()[0]
            for letter in entry.embedded
            if letter.isalpha()
        )
        for entry in entries
    )
    return Counter(max(letters, key=letters.__getitem__) for letters in scripts if letters)


def _report_scripts(entries: Sequence["Entry"], embedding: Embedding, report: Progress) -> None:
    """Say which entries the embedding cannot tell apart."""
    read = ("LATIN", "CJK") if "zh" in embedding.language else ("LATIN",)
    unread = sum(count for script, count in _scripts(entries).items() if script not in read)
    if unread:
        report(
            f"{unread} of {len(entries)} entries are in a script that {embedding.pipeline} does "
            "not read: it compares them wrongly"
        )


def _require_embedding(
    pipeline: str, repository: "ModelRepository", paths: Paths, report: Progress
) -> None:
    from tidegate.app.convert import ConvertOptions
    from tidegate.app.convert import run as convert
    from tidegate.app.train import RECIPES
    from tidegate.app.train import run as train

    if repository.is_published(pipeline):
        return
    if pipeline in RECIPES:
        train(pipeline, 0, paths, report)
    else:
        convert(ConvertOptions(pipeline), paths, report)


def _measured(
    entries: Sequence["Entry"],
    is_own: bool,
    asked: tuple[list["Question"], list["Question"]] | None,
    embed: Embedder,
    language: str,
) -> KnowledgeBase:
    """The entries with their vectors and thresholds; those of the language's default knowledge base
    where nobody has said what is asked of this one."""
    from training.knowledge_base import default_entries, evaluate, questions

    embedding = EMBEDDINGS[language]
    vectors = embed([entry.embedded for entry in entries])
    is_measured = bool(asked) or not is_own
    if is_measured:
        known, theirs = entries, vectors
    else:
        known = default_entries(language)
        theirs = embed([entry.embedded for entry in known])
    evaluation = evaluate(known, theirs, embed, asked or questions(language))
    return KnowledgeBase(entries, vectors, evaluation, embedding, is_own, is_measured)


def publish(
    knowledge: KnowledgeBase, steps: "EmbeddingSteps", deployment: "Deployment"
) -> tuple[str, int]:
    """Stage the pipeline with this knowledge base, check it, and publish it as the next version."""
    from ensembles.smart_reply import NAME, declare
    from modelspec.staging import stage_model
    from serving.publish.publish import publish as publish_staged
    from serving.repository.model_repository import ModelRepository
    from tidegate.app.pipelines import step_file

    pipeline = declare(steps, _checked_golden(knowledge), knowledge.card())
    staging = deployment.repository.staging
    staging.mkdir(parents=True, exist_ok=True)
    with held_folder(staging, NAME) as folder:
        files = {"knowledge.json": folder / "knowledge.json", "vectors.npy": folder / "vectors.npy"}
        document = json.dumps(knowledge.as_dict(), ensure_ascii=False, indent=1)
        files["knowledge.json"].write_text(document, encoding="utf-8")
        np.save(files["vectors.npy"], knowledge.vectors)
        staged = ModelRepository(folder / "staged")
        for spec in pipeline.models:
            own = {STEP_FILE: step_file(spec.step), **files} if spec.step else {}
            stage_model(staged.path, spec, own)
        version = publish_staged(staged, [spec.name for spec in pipeline.models], deployment)
    return NAME, version


def _checked_golden(knowledge: KnowledgeBase) -> Any:
    """The golden sample: the first entry's own words. TrainingError if an entry's own words do
    not find what it says: its vector is wrong, or two entries cannot be told apart."""
    from ensembles.smart_reply import PASSAGES
    from ensembles.steps.nearest_answers import NearestAnswers
    from modelspec.golden import Golden

    nearest = NearestAnswers(knowledge.vectors, knowledge.as_dict(), PASSAGES)
    for start in range(0, len(knowledge.entries), 256):
        vectors = knowledge.vectors[start : start + 256]
        outputs = nearest(vectors, [""] * len(vectors))
        for row, confidence in enumerate(outputs["confidence"][:, 0]):
            if not abs(float(confidence) - 1) <= SAME:
                entry = knowledge.entries[start + row]
                raise TrainingError(
                    f"the entry {entry.embedded[:60]!r} ({entry.source}) does not find itself "
                    f"(cosine {confidence:.3f}): report this"
                )
    text = knowledge.entries[0].embedded
    first = nearest(knowledge.vectors[:1], [text])
    # Cut as its vector was. A short one has less tokens than any embedding model takes.
    cut = {"truncate": True} if len(text) > SHORT else {}
    return Golden(
        request={"text": text, **cut},
        expect={
            "reply": [first["reply"][0, 0].decode()],
            "confidence": [float(first["confidence"][0, 0])],
        },
        tolerance=0.02,
    )

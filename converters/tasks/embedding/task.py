"""The task ``embedding``: a text -> a vector; near vectors mean near meanings."""

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from converters.cache import Progress
from converters.proof.checks import Check
from converters.proof.closeness import Closeness
from converters.proof.exercised import spread_lines
from converters.proof.reference import Reference
from converters.proof.runner import OpenRunner, onnx_runner
from converters.sources.huggingface import HuggingFaceFolder, TokenizerFile
from converters.sources.sentence_embedding import (
    SentenceEncoder,
    SentenceFolder,
    StaticEncoder,
    prompts,
    static_tokenizer,
)
from converters.sources.token_model import probe_ids
from converters.tasks.embedding import checks as embedding_proof
from converters.tasks.embedding.reference import embed
from converters.tasks.embedding.served import served_checks
from converters.tasks.text.answered import as_text_array, reference_texts
from converters.tasks.text.text_task import TextTask
from modelspec.golden import Golden

GOLDEN_ELEMENTS = 8


class Embedding(TextTask):
    """Answers: ``texts`` with their original ``vectors`` FP32 [n, width] and ``token_count`` INT32
    [n], and ``too_long`` texts with the ``long_vectors`` of what the model reads of them."""

    name: ClassVar[str] = "embedding"
    output: ClassVar[str] = "sentence_embedding"
    per_text: ClassVar[tuple[str, ...]] = ("texts", "vectors", "token_count")
    reference_packages: ClassVar[tuple[str, ...]] = ("sentence-transformers",)
    auto_class: ClassVar[str] = "AutoModel"
    folder: SentenceFolder

    def open_source(self, source: str) -> HuggingFaceFolder:
        self.folder = SentenceFolder.open(Path(source))
        return self.folder.transformer

    def files(self) -> list[Path]:
        return self.folder.files()

    @cached_property
    def original(self) -> Any:
        """The SentenceTransformer of the folder."""
        self.source.require_vocabulary()
        return self.folder.load()

    @cached_property
    def module(self) -> torch.nn.Module:
        if self.folder.is_static:
            return StaticEncoder(self.original).eval()
        return SentenceEncoder(self.original, self.tokenizer.inputs).eval()

    @cached_property
    def tokenizer(self) -> TokenizerFile:
        if self.folder.is_static:
            return static_tokenizer(self.source.path)
        return self.source.tokenizer_file(self.original.tokenizer)

    def pad_id(self) -> int:
        return self.tokenizer.pad_id if self.folder.is_static else super().pad_id()

    def metadata(self) -> dict[str, Any]:
        ids = probe_ids(self.module, 1, 4)
        with torch.no_grad():
            width = int(self.module(ids, torch.ones_like(ids)).shape[-1])
        return {**super().metadata(), "width": width, "normalised": self._normalises()}

    def ask(self, folder: Path, report: Progress) -> dict[str, np.ndarray]:
        texts = self.texts(folder, report)
        too_long = self.too_long(texts)
        outputs = embed(self.folder.path, texts, too_long, self.buckets[-1], folder)
        texts_sent = {"texts": as_text_array(texts), "too_long": as_text_array(too_long)}
        return {**texts_sent, **outputs, **self.table_products()}

    def prove_graph(
        self, engine: Path, reference: Reference, runner: OpenRunner = onnx_runner
    ) -> list[Check]:
        graph = self.graph(engine, reference, runner)
        return embedding_proof.graph_checks(graph, reference_texts(reference), reference)

    def answer_lines(self, reference: Reference) -> list[str]:
        return list(spread_lines("vectors", reference.outputs["vectors"], reference.tolerance))

    def parity_checks(self, engine: Path, reference: Reference) -> list[Check]:
        return embedding_proof.parity_checks(self.graph(engine, reference), reference)

    def closeness(self, engine: Path, reference: Reference) -> Closeness:
        return embedding_proof.vectors_closeness(self.graph(engine, reference), reference)

    def golden(self, reference: Reference) -> Golden:
        vector, count = reference.outputs["vectors"][0], reference.outputs["token_count"][0]
        unit = embedding_proof.typical_length(reference)
        return Golden(
            request={"text": reference_texts(reference)[0]},
            expect={
                "sentence_embedding": [round(float(x), 6) for x in vector[:GOLDEN_ELEMENTS]],
                "token_count": [int(count)],
            },
            tolerance=10 * reference.tolerance.difference * unit,
        )

    def prove_served(self, address: str, reference: Reference) -> list[Check]:
        return served_checks(address, reference)

    def card(self) -> dict[str, Any]:
        settings = prompts(self.folder.path)
        card = {**super().card(), "pooling": self._pooling()}
        prompt_texts = {name: text for name, text in settings.get("prompts", {}).items() if text}
        if prompt_texts:
            card["prompts"] = prompt_texts
            card["prompts_note"] = "Not added for you: put the right one before the text."
        if settings.get("similarity_fn_name"):
            card["similarity"] = settings["similarity_fn_name"]
        return card

    def _normalises(self) -> bool:
        types = [module_type for module_type, _ in self.folder.modules]
        return types[-1:] == ["Normalize"] and self.original.truncate_dim is None

    def _pooling(self) -> str:
        if self.folder.is_static:
            following = [module_type for module_type, _ in self.folder.modules]
            return " then ".join(["the mean of the tokens' vectors (static)", *following])
        if self.folder.modules:
            return " then ".join(module_type for module_type, _ in self.folder.modules)
        return (
            "the folder names none, so as in sentence-transformers: the mean of the token vectors "
            "(of a decoder, the last token), not normalised"
        )

"""The task ``causal-lm``: a GGUF file, or a Hugging Face folder written as GGUF."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from converters.cache import Progress
from converters.errors import SourceRefused
from converters.proof.checks import Check
from converters.proof.reference import Feed, Reference
from converters.proof.runner import OpenRunner, onnx_runner
from converters.proof.tolerance import Tolerance
from converters.sample_texts import read_texts
from converters.task import ConversionRequest, Task
from converters.tasks.causal_lm.limits import LIMITS
from converters.tasks.causal_lm.reference import GOLDEN_STEPS, ask_original
from converters.tasks.causal_lm.samples import (
    QUESTIONS,
    conversations,
    default_passages,
    passages,
    token_texts,
)
from modelspec.golden import Golden
from modelspec.layout import LANGUAGE_MODEL_FILE, SETTINGS_FILE

# Of prompt and output. The engine reserves memory for 8,192 tokens of all streams together
# (serving/backends/openvino_genai): one conversation may take a quarter of it.
CONTEXT_LENGTH = 2048


class CausalLm(Task):
    name: ClassVar[str] = "causal-lm"
    precisions: ClassVar[tuple[str, ...]] = tuple(LIMITS)
    tests_graphs: ClassVar[bool] = False
    not_compared: ClassVar[str] = "the engine does not show them; the probabilities of text were"
    graph_file: ClassVar[str] = LANGUAGE_MODEL_FILE
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    reference_packages: ClassVar[tuple[str, ...]] = ("gguf", "openvino-genai")
    golden_question: ClassVar[str | None] = None  # None: the one that is the least in doubt

    def __init__(self, request: ConversionRequest) -> None:
        super().__init__(request)
        from converters.tasks.causal_lm.folder import LanguageModelFolder
        from converters.tasks.causal_lm.gguf_file import GgufFile

        self.source = self.path()
        self.file = GgufFile(self.source) if self.source.is_file() else None
        self.folder = None if self.file else LanguageModelFolder.open(self.source)
        self.passages = (
            passages(read_texts(request.samples)) if request.samples else default_passages()
        )

    def path(self) -> Path:
        """The file, or the folder, that is converted."""
        return Path(self.request.source)

    def offered(self) -> tuple[str, ...]:
        own = self.file.precision if self.file else ""
        return tuple(sorted(self.precisions, key=lambda precision: precision != own))

    def tolerance(self, precision: str) -> Tolerance:
        return LIMITS[precision]

    def files(self) -> list[Path]:
        if self.folder:
            return self.folder.files()
        return [self.source, *([self.request.samples] if self.request.samples else [])]

    def settings(self) -> str:
        return json.dumps([self.passages, QUESTIONS, token_texts(), conversations()])

    def metadata(self) -> dict[str, Any]:
        """What the declaration needs: of the file that will be served."""
        source = self.file or self.folder
        assert source is not None  # noqa: S101 - the constructor opens one of them
        return {
            "architecture": source.architecture,
            "context_length": min(source.context_length, CONTEXT_LENGTH),
            "template": source.template,
            "variables": source.special_tokens,
            "markers": source.markers,
        }

    def export(self, target: Path) -> None:
        if self.folder:
            self.folder.write(target)
        else:
            _link(self.source, target)

    def write_precision(
        self, precision: str, source: Path, target: Path, reference: Reference
    ) -> None:
        from converters.tasks.causal_lm.gguf_file import GgufFile
        from converters.tasks.causal_lm.rewriting import write_gguf

        file = GgufFile(source)
        if file.precision == precision:
            _link(source, target)
        else:
            write_gguf(file, target, precision)
        settings: dict[str, object] = {"context_length": reference.metadata["context_length"]}
        others = set(reference.outputs["end_ids"].tolist()) - {file.end_token}
        if others:
            settings["stop_token_ids"] = sorted(others)
        if reference.outputs["is_nfc"]:
            settings["normalize_nfc"] = True
        target.with_name(SETTINGS_FILE).write_text(json.dumps(settings) + "\n", encoding="utf-8")

    def ask(self, folder: Path, report: Progress) -> dict[str, np.ndarray]:
        return ask_original(self.source, self.passages, folder)

    def feeds(self, reference: Reference) -> Iterator[Feed]:
        return iter(())

    def prove_graph(
        self, engine: Path, reference: Reference, runner: OpenRunner = onnx_runner
    ) -> list[Check]:
        from converters.tasks.causal_lm.checks import file_checks

        return file_checks(engine, reference)

    def self_test(self, engine: Path, reference: Reference, precision: str) -> list[Check]:
        from converters.tasks.causal_lm.checks import faulty_file_check

        with tempfile.TemporaryDirectory(dir=engine.parent, prefix=".faulty-") as work:
            return [faulty_file_check(engine, Path(work), reference)]

    def prove_served(self, address: str, reference: Reference) -> list[Check]:
        from converters.tasks.causal_lm.served import served_checks

        return served_checks(address, reference)

    def golden(self, reference: Reference) -> Golden:
        """The prompt of ``golden_question``, or the one whose first tokens are the least in doubt,
        continued greedily."""
        outputs = reference.outputs
        first, second = np.moveaxis(outputs["top_log_probs"][:, :GOLDEN_STEPS, :2], -1, 0)
        # After the end there is nothing to choose; a character cut in the middle is no text.
        leads = np.subtract(first, second, out=np.full(first.shape, np.inf), where=second > -np.inf)
        doubt = leads.min(axis=1)
        whole = ["\ufffd" not in text and text != "" for text in outputs["golden_texts"]]
        if not any(whole):
            raise SourceRefused(
                f"{self.source} continues none of {len(whole)} prompts with text: it has not been "
                "trained, or its tokenizer is another model's"
            )
        best = (
            QUESTIONS.index(self.golden_question)
            if self.golden_question
            else int(np.argmax(np.where(whole, doubt, -np.inf)))
        )
        sampling = {"temperature": 0, "max_tokens": GOLDEN_STEPS}
        return Golden(
            request={
                "text_input": str(outputs["prompts"][best]),
                "sampling_parameters": json.dumps(sampling),
                "exclude_input_in_output": True,
            },
            expect={"text_output": [str(outputs["golden_texts"][best])]},
            tolerance=0.0,
        )

    def exercised(self, reference: Reference) -> list[str]:
        outputs = reference.outputs
        ended = int((outputs["greedy_ids"] < 0).any(axis=1).sum())
        lines = [
            f"{len(outputs['log_probs'])} tokens of real text in "
            f"{len(outputs['log_probs_lengths'])} passages were scored, "
            f"{len(outputs['prompts'])} prompts continued, of which {ended} end by themselves",
            f"{len(outputs['rendered'])} conversations were rendered, of which the template "
            f"refuses {int(outputs['refused'].sum())}",
        ]
        if self.file:
            lines.append(
                "The original is the GGUF file itself, its weights in "
                f"{', '.join(sorted(self.file.matrix_types))} dequantized: what that quantization "
                "cost the model it was made from is not measured here"
            )
        if reference.outputs["is_nfc"]:
            lines.append(
                "The original's tokenizer normalizes text to NFC, which OpenVINO's does not: "
                "model.json says so, and the backend normalizes each prompt"
            )
        return lines

    def card(self) -> dict[str, Any]:
        return {
            **super().card(),
            "limits": "A language model invents facts, names and numbers: check what it says.",
        }


def _link(source: Path, target: Path) -> None:
    """The same file under another name: linked where the file system can, else copied."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)

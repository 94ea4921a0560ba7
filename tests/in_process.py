"""A text pipeline without a server: the real steps and the real graph, with faults to plant."""

import importlib
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from converters.proof.reference import Reference
from converters.proof.token_graph import TokenGraph
from converters.tasks.text.served_text import ServedText, padded
from converters.tasks.text.text_task import TOKENIZER

Fault = Callable[[str], str]


def as_it_is(source: str) -> str:
    return source


def changed(old: str, new: str) -> Fault:
    """A fault that is one piece of a step's source, replaced."""

    def plant(source: str) -> str:
        assert old in source, f"the step has no {old!r} any more"
        return source.replace(old, new)

    return plant


def step(name: str, fault: Fault = as_it_is) -> types.ModuleType:
    """The step's module, with a fault planted in its source."""
    path = importlib.import_module(f"ensembles.steps.{name}").__file__
    assert path
    name = f"planted_{name}"
    module = types.ModuleType(name)
    sys.modules[name] = module  # a dataclass looks its module up
    exec(compile(fault(Path(path).read_text()), path, "exec"), module.__dict__)  # noqa: S102 - our own step
    return module


class InProcess(ServedText):
    """Answers as the served pipeline of ``reference`` would; ``finish`` is its last step."""

    def __init__(
        self,
        graph: TokenGraph,
        reference: Reference,
        finish: Callable[..., dict[str, np.ndarray]],
        pre: Fault = as_it_is,
    ) -> None:
        module = step("tokenize_text", pre)
        tokenizer = Tokenizer.from_file(str(reference.folder / TOKENIZER))
        metadata = reference.metadata
        self._tokenize = module.BucketTokenizer(
            tokenizer, list(metadata["buckets"]), metadata["pad_id"]
        )
        self._graph, self._finish = graph, finish
        self.max_batch_size = 32

    def tokens(self, texts: Sequence[str], truncate: bool = False):
        tokens = self._tokenize([text.encode() for text in texts], truncate)
        return tokens.ids, tokens.mask

    def infer(self, texts: Sequence[str], outputs: Sequence[str], truncate: bool = False):
        sent = [text.encode() for text in texts]
        tokens = self._tokenize(sent, truncate)
        answer = self._finish(self._graph.run(tokens.ids, tokens.mask), tokens, sent)
        return {name: {**answer, "token_count": tokens.count}[name] for name in outputs}

    def of_logits(self, texts: Sequence[str], logits: Sequence[np.ndarray], outputs: Sequence[str]):
        sent = [text.encode() for text in texts]
        tokens = self._tokenize(sent, False)
        answer = self._finish(padded(logits, tokens.ids.shape[1]), tokens, sent)
        return {name: answer[name] for name in outputs}

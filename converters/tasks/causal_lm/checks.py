"""Prove a GGUF file in OpenVINO against transformers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp
from pathlib import Path

import numpy as np

from converters.proof.checks import Check, at_least, at_most
from converters.proof.reference import Reference
from converters.proof.self_test import NAME, answers_self_test
from converters.tasks.causal_lm.faults import FAULTY_FILES
from converters.tasks.causal_lm.gguf_file import GgufFile
from converters.tasks.causal_lm.openvino_engine import Generated, OpenVinoEngine
from converters.tasks.causal_lm.reference import ragged
from converters.tasks.causal_lm.samples import STEPS

FEW = 4  # passages that a faulty file is asked


def file_checks(path: Path, reference: Reference) -> list[Check]:
    """All checks of a file that is loaded in this process."""
    engine, outputs = OpenVinoEngine(path), reference.outputs
    file, prompts = GgufFile(path), ragged(outputs, "prompt_ids")
    alone = [engine.greedy([prompt], STEPS)[0] for prompt in prompts]
    together = engine.greedy(prompts, STEPS)
    return [
        *passage_checks(engine, reference),
        *greedy_checks(alone, reference),
        _same(
            "batch invariance: prompts that differ alone and among 8", alone, together, reference
        ),
        token_check(engine.token_ids, reference),
        *declared_checks(Declared(engine.end_ids, file.template), reference),
        *_answers_self_test(engine, file, reference),
    ]


def passage_checks(
    engine: OpenVinoEngine, reference: Reference, most: int | None = None
) -> list[Check]:
    """How near the probabilities of real text are, on at most ``most`` of the passages."""
    outputs = reference.outputs
    ids = ragged(outputs, "passage_ids")[:most]
    expected = np.concatenate(ragged(outputs, "log_probs")[:most])
    actual = np.concatenate(engine.log_probs(ids))
    return score_checks(actual, expected, reference)


def score_checks(actual: np.ndarray, expected: np.ndarray, reference: Reference) -> list[Check]:
    """Log-probabilities FP64 [tokens] of the same tokens."""
    limit = reference.tolerance.mean
    perplexity, original = exp(-actual.mean()), exp(-expected.mean())
    ratio = max(perplexity / original, original / perplexity)
    detail = f"{perplexity:.3f}, original {original:.3f}, on {len(expected)} tokens"
    return [
        at_most("perplexity, ratio to the original's", ratio, exp(limit), detail),
        at_most(
            "log-probability of a token, mean difference",
            float(np.abs(actual - expected).mean()),
            3 * limit,
            f"largest {np.abs(actual - expected).max():.3f}",
        ),
    ]


def greedy_checks(generated: Sequence[Generated], reference: Reference) -> list[Check]:
    """Whether the likeliest continuation is the original's, and what made it another one."""
    outputs, limits = reference.outputs, reference.tolerance
    worst, label, equal, total = 0.0, "", 0, 0
    wrong_ends = []
    for index, output in enumerate(generated):
        original = original_ids(reference, index)
        ended = has_ended(reference, index)
        step = first_difference(output.ids, original)
        total += max(len(original), 1)
        equal += step
        if step == len(original) == len(output.ids):
            if output.ended != ended:
                wrong_ends.append(f"{outputs['prompts'][index][-60:]!r}")
            continue
        chosen = output.ids[step] if step < len(output.ids) else outputs["end_ids"][0]
        gap = lead(reference, index, step, int(chosen))
        if gap > worst:
            worst = gap
            label = f"{outputs['prompts'][index][-60:]!r} at token {step}"
    return [
        at_least("greedy: tokens before the first other one", equal / total, limits.agreement),
        at_most(
            "greedy: the original's lead where another was chosen", worst, limits.difference, label
        ),
        at_most(
            "end of a generation: prompts that end otherwise",
            len(wrong_ends),
            0,
            "; ".join(wrong_ends),
        ),
    ]


def original_ids(reference: Reference, index: int) -> tuple[int, ...]:
    """The original's continuation of a prompt, the end token left out."""
    ends = set(reference.outputs["end_ids"].tolist())
    row = reference.outputs["greedy_ids"][index].tolist()
    return tuple(token for token in row if token >= 0 and token not in ends)


def has_ended(reference: Reference, index: int) -> bool:
    """Whether the original ended its continuation of this prompt by itself."""
    row = reference.outputs["greedy_ids"][index]
    return bool((row < 0).any()) or int(row[-1]) in set(reference.outputs["end_ids"])


def first_difference(actual: Sequence[object], expected: Sequence[object]) -> int:
    """The number of leading elements that are equal."""
    pairs = zip(actual, expected, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(actual), len(expected)))


def lead(reference: Reference, index: int, step: int, token: int) -> float:
    """By how much (nats) the original preferred its own token to ``token`` at this step; infinite
    if that one was not among its likeliest."""
    ids = reference.outputs["top_ids"][index, min(step, STEPS - 1)]
    log_probs = reference.outputs["top_log_probs"][index, min(step, STEPS - 1)]
    ranks = np.flatnonzero(ids == token)
    return float(log_probs[0] - log_probs[ranks[0]]) if len(ranks) else float("inf")


def _same(
    name: str, alone: Sequence[Generated], together: Sequence[Generated], reference: Reference
) -> Check:
    pairs = zip(reference.outputs["prompts"], alone, together, strict=True)
    different = [str(prompt)[-60:] for prompt, one, other in pairs if one != other]
    return at_most(name, len(different), reference.tolerance.invariance, "; ".join(different))


def token_check(token_ids: Callable[[str], list[int]], reference: Reference) -> Check:
    """The tokenizer in the file against the original's."""
    texts, rows = reference.outputs["token_texts"], ragged(reference.outputs, "token_ids")
    different = [
        f"{text[:40]!r}: {token_ids(str(text))[:12]}, original {row[:12].tolist()}"
        for text, row in zip(texts, rows, strict=True)
        if token_ids(str(text)) != row.tolist()
    ]
    name = f"tokenizer: of {len(texts)} texts, other ids"
    return at_most(name, len(different), 0, "; ".join(different))


@dataclass(frozen=True)
class Declared:
    """What the served model knows besides its weights."""

    end_ids: frozenset[int]
    template: str


def declared_checks(declared: Declared, reference: Reference) -> list[Check]:
    """The end tokens and the chat template, exactly."""
    original = frozenset(reference.outputs["end_ids"].tolist())
    template = str(reference.outputs["template"][0])
    return [
        at_most(
            "end tokens: missing or added",
            len(declared.end_ids ^ original),
            0,
            f"{sorted(declared.end_ids)}, original {sorted(original)}",
        ),
        at_most("chat template: differs from the original's", declared.template != template, 0),
    ]


def _answers_self_test(engine: OpenVinoEngine, file: GgufFile, reference: Reference) -> list[Check]:
    """Faults that need no other file: planted into what was read and answered."""
    declared = Declared(engine.end_ids, file.template)
    greedy = [
        Generated(original_ids(reference, i), False)
        for i in range(len(reference.outputs["prompts"]))
    ]
    shifted = [Generated(g.ids[1:], g.ended) for g in greedy]
    score = np.concatenate(ragged(reference.outputs, "log_probs"))
    faults: dict[str, list[Check]] = {
        "another end token": declared_checks(Declared(frozenset({0, 5}), file.template), reference),
        "another chat template": declared_checks(
            Declared(declared.end_ids, file.template + " "), reference
        ),
        "token ids shifted": [
            token_check(lambda text: [i + 1 for i in engine.token_ids(text)], reference)
        ],
        "first token lost": greedy_checks(shifted, reference),
    }
    return [
        self_test_check(faults, "what is declared"),
        *answers_self_test(
            lambda faulty: score_checks(faulty.ravel(), score, reference),
            score[:, None],
            what="log-probabilities",
        ),
    ]


def faulty_file_check(path: Path, folder: Path, reference: Reference) -> Check:
    """Whether files with planted faults, written into ``folder``, would pass."""
    faults = {}
    for fault, write in FAULTY_FILES.items():
        target = folder / f"faulty-{path.name}"
        write(path, target)
        try:
            faults[fault] = passage_checks(OpenVinoEngine(target), reference, FEW)
        finally:
            target.unlink()
    return self_test_check(faults, "the file")


def self_test_check(faults: dict[str, list[Check]], what: str) -> Check:
    passed = [name for name, checks in faults.items() if all(check.passed for check in checks)]
    detected = [name for name in faults if name not in passed]
    detail = f"would pass: {', '.join(passed)}. " if passed else ""
    return at_most(f"{NAME}, {what}", len(passed), 0, f"{detail}detected: {', '.join(detected)}")

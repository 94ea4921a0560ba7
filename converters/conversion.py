"""Source -> FP32 graph and the original's answers -> a proved variant of the graph.

Two folders in the cache: the *original* (graph, steps, answers), made once for a source and its
samples, whatever the pipeline is called, and one *variant* for each name and precision, which is
there only if its proof held.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from converters.attempt import attempted
from converters.cache import PROOF_FILE, Say, content_key, conversion, files_sha256
from converters.errors import ConversionError
from converters.proof import Proof
from converters.record import Record
from converters.runner import OpenRunner, onnx_runner
from converters.self_test import compared_layers, graph_self_test
from converters.task import Case, Task
from converters.tolerance import tolerance

GRAPH, FACTS, ANSWERS = "model.onnx", "facts.json", "original.npz"
STEPS = ("pre", "post")


@dataclass(frozen=True)
class Variant:
    """One precision of a conversion, with the reason for accepting it if its proof fails."""

    precision: str = "fp32"
    accepted: str = ""


@dataclass(frozen=True)
class Converted:
    """A proved graph: ``engine`` is the file, ``record`` its proof so far."""

    task: Task
    case: Case
    engine: Path
    record: Record

    def step_files(self, part: str) -> Mapping[str, Path]:
        """The files of ``NAME_pre`` or ``NAME_post``, by their name in the version folder."""
        folder = self.case.folder / part
        return {path.name: path for path in sorted(folder.iterdir())} if folder.is_dir() else {}


def convert(task: Task, variant: Variant, say: Say) -> Converted:
    """The task's source as a proved graph of this precision, from the cache where it is there.

    Raises ConversionError (its tree says what kind); the cache then has no such variant.
    """
    if variant.precision not in task.precisions:
        raise ConversionError(
            f"{task.name} has no precision {variant.precision!r}: choose one of "
            f"{', '.join(task.precisions)}"
        )
    name = task.order.name
    key = _key(task)
    original = conversion(name, key, ANSWERS, lambda folder: _original(task, folder, say))
    case = case_in(original, name, task.name, variant.precision)
    settings = json.dumps([name, key, variant.precision, variant.accepted])
    built = conversion(
        name,
        content_key(settings),
        PROOF_FILE,
        lambda folder: _variant(task, case, variant, folder, say),
    )
    return Converted(task, case, built / GRAPH, Record.load(built / PROOF_FILE))


def case_in(folder: Path, name: str, task: str, precision: str) -> Case:
    """The case that ``folder`` holds, with the tolerances of this precision."""
    facts: dict[str, Any] = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    with np.load(folder / ANSWERS) as stored:
        answers = dict(stored)
    # A graph that came in FP16 is proved as such: its own rounding is no fault of the conversion.
    own = "fp16" if facts.get("half") and precision == "fp32" else precision
    return Case(name, folder, facts, answers, tolerance(task, own))


def ask_original(task: Task, folder: Path, say: Say) -> None:
    """Write into ``folder`` all that a Case needs, from the source alone: no graph."""
    facts = task.facts()
    for part in STEPS:
        (folder / part).mkdir()
    task.write_steps(folder)
    say(f"{task.order.name}: asking the original model")
    answers = task.ask(folder, say)
    (folder / FACTS).write_text(json.dumps(facts, ensure_ascii=False), encoding="utf-8")
    np.savez(folder / ANSWERS, **answers)


def prove_graph(
    task: Task, engine: Path, case: Case, runner: OpenRunner = onnx_runner, what: str = "the graph"
) -> Proof:
    """Every check of the graph in ``engine``, passed or not: one that cannot run failed. ``what``
    it is called, where ``runner`` is another than ONNX Runtime (which shows no layers)."""
    checks = attempted(what, lambda: task.prove_graph(engine, case, runner))
    source = case.folder / GRAPH
    if runner is onnx_runner and task.tests_graphs and source.is_file():
        checks += attempted(f"{what}, layer by layer", lambda: compared_layers(task, engine, case))
    return Proof(f"{case.name}: {what}", tuple(checks))


def source_sha256(task: Task) -> str:
    """What the model and its samples are, whatever converts them."""
    options = dict(task.order.options)
    return files_sha256(task.files(), json.dumps([task.name, task.settings(), options]))


def _key(task: Task) -> str:
    """The original's: without the pipeline's name, which only the proof's record holds."""
    return content_key(source_sha256(task))


def _original(task: Task, folder: Path, say: Say) -> None:
    say(f"{task.order.name}: exporting to ONNX")
    task.export(folder / GRAPH)
    ask_original(task, folder, say)


def _variant(task: Task, case: Case, variant: Variant, folder: Path, say: Say) -> None:
    from converters.precision import write_variant

    if variant.precision != "fp32":
        say(f"{case.name}: writing the {variant.precision} variant")
    target = folder / GRAPH
    write_variant(variant.precision, case.folder / GRAPH, target, lambda: task.calibration(case))
    say(f"{case.name}: proving the {variant.precision} graph against the original")
    proof = prove_graph(task, target, case)
    if task.tests_graphs:
        say(f"{case.name}: planting faults, each of which the proof must see")
        tested = attempted(
            "the self-test", lambda: [graph_self_test(task, case, variant.precision)]
        )
        proof = replace(proof, checks=(*proof.checks, *tested))
    exercised = task.exercised(case)
    for line in exercised:
        say(f"{case.name}: {line}")
    record = Record.start(task, variant, source_sha256(task), proof, target, exercised)
    record.require()
    record.save(folder)

"""Source -> FP32 graph and the original's answers -> a proved precision of the graph.

Two folders in the cache: the *original* (graph, steps, answers), made once for a source and its
samples, whatever the pipeline is called, and one *precision* for each name and precision, which is
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
from converters.task import Reference, Task
from converters.tolerance import tolerance

GRAPH, FACTS, ANSWERS = "model.onnx", "metadata.json", "original.npz"
STEPS = ("pre", "post")


@dataclass(frozen=True)
class ConversionOptions:
    """One precision of a conversion, with the reason for accepting it if its proof fails."""

    precision: str = "fp32"
    accepted: str = ""


@dataclass(frozen=True)
class Converted:
    """A proved graph: ``engine`` is the file, ``record`` its proof so far."""

    task: Task
    reference: Reference
    engine: Path
    record: Record

    def step_files(self, part: str) -> Mapping[str, Path]:
        """The files of ``NAME_pre`` or ``NAME_post``, by their name in the version folder."""
        folder = self.reference.folder / part
        return {path.name: path for path in sorted(folder.iterdir())} if folder.is_dir() else {}


def convert(task: Task, options: ConversionOptions, say: Say) -> Converted:
    """The task's source as a proved graph of this precision, from the cache where it is there.

    Raises ConversionError (its tree says what kind); the cache then has no such precision.
    """
    if options.precision not in task.precisions:
        raise ConversionError(
            f"{task.name} has no precision {options.precision!r}: choose one of "
            f"{', '.join(task.precisions)}"
        )
    name = task.request.name
    key = _key(task)
    original = conversion(name, key, ANSWERS, lambda folder: _original(task, folder, say))
    reference = reference_in(original, name, task.name, options.precision)
    settings = json.dumps([name, key, options.precision, options.accepted])
    built = conversion(
        name,
        content_key(settings),
        PROOF_FILE,
        lambda folder: _precision(task, reference, options, folder, say),
    )
    return Converted(task, reference, built / GRAPH, Record.load(built / PROOF_FILE))


def reference_in(folder: Path, name: str, task: str, precision: str) -> Reference:
    """The case that ``folder`` holds, with the tolerances of this precision."""
    metadata: dict[str, Any] = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    with np.load(folder / ANSWERS) as stored:
        answers = dict(stored)
    # A graph that came in FP16 is proved as such: its own rounding is no fault of the conversion.
    own = "fp16" if metadata.get("half") and precision == "fp32" else precision
    return Reference(name, folder, metadata, answers, tolerance(task, own))


def ask_original(task: Task, folder: Path, say: Say) -> None:
    """Write into ``folder`` all that a Reference needs, from the source alone: no graph."""
    metadata = task.metadata()
    for part in STEPS:
        (folder / part).mkdir()
    task.write_steps(folder)
    say(f"{task.request.name}: asking the original model")
    answers = task.ask(folder, say)
    (folder / FACTS).write_text(json.dumps(metadata, ensure_ascii=False), encoding="utf-8")
    np.savez(folder / ANSWERS, **answers)


def prove_graph(
    task: Task,
    engine: Path,
    reference: Reference,
    runner: OpenRunner = onnx_runner,
    what: str = "the graph",
) -> Proof:
    """Every check of the graph in ``engine``, passed or not: one that cannot run failed. ``what``
    it is called, where ``runner`` is another than ONNX Runtime (which shows no layers)."""
    checks = attempted(what, lambda: task.prove_graph(engine, reference, runner))
    source = reference.folder / GRAPH
    if runner is onnx_runner and task.tests_graphs and source.is_file():
        checks += attempted(
            f"{what}, layer by layer", lambda: compared_layers(task, engine, reference)
        )
    return Proof(f"{reference.name}: {what}", tuple(checks))


def source_sha256(task: Task) -> str:
    """What the model and its samples are, whatever converts them."""
    source_options = dict(task.request.options)
    return files_sha256(task.files(), json.dumps([task.name, task.settings(), source_options]))


def _key(task: Task) -> str:
    """The original's: without the pipeline's name, which only the proof's record holds."""
    return content_key(source_sha256(task))


def _original(task: Task, folder: Path, say: Say) -> None:
    say(f"{task.request.name}: exporting to ONNX")
    task.export(folder / GRAPH)
    ask_original(task, folder, say)


def _precision(
    task: Task, reference: Reference, options: ConversionOptions, folder: Path, say: Say
) -> None:
    from converters.precision import write_precision

    if options.precision != "fp32":
        say(f"{reference.name}: writing the {options.precision} precision")
    target = folder / GRAPH
    write_precision(
        options.precision, reference.folder / GRAPH, target, lambda: task.calibration(reference)
    )
    say(f"{reference.name}: proving the {options.precision} graph against the original")
    proof = prove_graph(task, target, reference)
    if task.tests_graphs:
        say(f"{reference.name}: planting faults, each of which the proof must see")
        tested = attempted(
            "the self-test", lambda: [graph_self_test(task, reference, options.precision)]
        )
        proof = replace(proof, checks=(*proof.checks, *tested))
    exercised = task.exercised(reference)
    for line in exercised:
        say(f"{reference.name}: {line}")
    record = Record.start(task, options, source_sha256(task), proof, target, exercised)
    record.require()
    record.save(folder)

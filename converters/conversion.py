"""Source -> FP32 graph and the original's answers -> a proved graph of the chosen precision.

The cache has two kinds of folder: the *original* (graph, steps, answers), made once for a source
and its samples whatever the pipeline is called, and the *converted* graph, one for each pipeline
name and precision, which exists only if its proof held.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from converters.cache import (
    PROOF_FILE,
    Progress,
    cache_root,
    content_key,
    conversion,
    files_sha256,
)
from converters.errors import ConversionError
from converters.proof.attempt import attempted
from converters.proof.checks import Proof
from converters.proof.record import Record
from converters.proof.reference import Reference
from converters.proof.runner import OpenRunner, onnx_runner
from converters.proof.self_test import compared_layers, graph_self_test
from converters.task import Task

GRAPH, METADATA, ANSWERS = "model.onnx", "metadata.json", "original.npz"
STEPS = ("pre", "post")


@dataclass(frozen=True)
class ConversionOptions:
    """The precision to convert to, and the reason for accepting it if its proof fails."""

    precision: str = "fp32"
    accepted: str = ""


@dataclass(frozen=True)
class Converted:
    """A proved graph: ``engine`` is its file, ``record`` its proof so far."""

    task: Task
    reference: Reference
    engine: Path
    record: Record

    def step_files(self, part: str) -> Mapping[str, Path]:
        """The files of ``NAME_pre`` or ``NAME_post``, by their name in the version folder."""
        folder = self.reference.folder / part
        return {path.name: path for path in sorted(folder.iterdir())} if folder.is_dir() else {}


def convert(task: Task, options: ConversionOptions, report: Progress) -> Converted:
    """The task's source as a proved graph of this precision, from the cache if it is there.

    Raises a ConversionError (see the tree in ``converters.errors``); nothing of this precision is
    then in the cache.
    """
    if options.precision not in task.precisions:
        raise ConversionError(
            f"{task.name} has no precision {options.precision!r}: choose one of "
            f"{', '.join(task.precisions)}"
        )
    name = task.request.name
    key = _key(task)
    original = conversion(name, key, ANSWERS, lambda folder: _export(task, folder, report))
    reference = reference_in(original, name, task, options.precision)
    settings = json.dumps([name, key, options.precision, options.accepted])
    converted = conversion(
        name,
        _content_key(task, settings),
        PROOF_FILE,
        lambda folder: _write_precision(task, reference, options, folder, report),
    )
    return Converted(task, reference, converted / GRAPH, Record.load(converted / PROOF_FILE))


def reference_in(folder: Path, name: str, task: Task, precision: str) -> Reference:
    """The reference stored in ``folder``, with the tolerances of this precision."""
    metadata: dict[str, Any] = json.loads((folder / METADATA).read_text(encoding="utf-8"))
    with np.load(folder / ANSWERS) as stored:
        answers = dict(stored)
    # A source in FP16 is proved as FP16: its own rounding is not a fault of the conversion.
    proved_as = "fp16" if metadata.get("half") and precision == "fp32" else precision
    return Reference(name, folder, metadata, answers, task.tolerance(proved_as))


def ask_original(task: Task, folder: Path, report: Progress) -> None:
    """Write into ``folder`` all that a Reference needs, from the source alone: no graph."""
    metadata = task.metadata()
    for part in STEPS:
        (folder / part).mkdir()
    task.write_steps(folder)
    report(f"{task.request.name}: asking the original model")
    answers = task.ask(folder, report)
    (folder / METADATA).write_text(json.dumps(metadata, ensure_ascii=False), encoding="utf-8")
    np.savez(folder / ANSWERS, **answers)


def prove_graph(
    task: Task,
    engine: Path,
    reference: Reference,
    runner: OpenRunner = onnx_runner,
    what: str = "the graph",
) -> Proof:
    """Every check of the graph in ``engine``, passed or not; a check that cannot run counts as
    failed. ``what`` names the engine in the proof. Where layers cannot be compared, the proof says
    so."""
    checks = attempted(what, lambda: task.prove_graph(engine, reference, runner))
    not_compared = ""
    if not task.tests_graphs:
        not_compared = "this kind of model has none that are rounded"
    elif runner is not onnx_runner:
        not_compared = "a TensorRT plan does not show them; its answers were"
    elif not (reference.folder / GRAPH).is_file():
        not_compared = (
            "the FP32 graph of this source is not in the cache (tidegate convert writes it); the "
            "answers were"
        )
    else:
        layers, not_compared = compared_layers(task, engine, reference)
        checks += layers
    note = f"Layers were not compared: {not_compared}." if not_compared else ""
    return Proof(f"{reference.name}: {what}", tuple(checks), note)


def link_graph(task: Task, folder: Path) -> None:
    """Put the FP32 graph of an earlier conversion of this source into ``folder``, if the cache has
    it, so that layers are compared."""
    graph = cache_root() / "conversions" / _key(task) / GRAPH
    if graph.is_file():
        (folder / GRAPH).symlink_to(graph)


def source_sha256(task: Task) -> str:
    """SHA-256 of the model and its samples, independent of the code that converts them."""
    source_options = dict(task.request.options)
    return files_sha256(task.files(), json.dumps([task.name, task.settings(), source_options]))


def _key(task: Task) -> str:
    """The original's key: without the pipeline's name, which only the proof's record has."""
    return _content_key(task, source_sha256(task))


def _content_key(task: Task, settings: str) -> str:
    """The key of what this module makes of the task."""
    return content_key(settings, __name__, type(task).__module__, packages=task.reference_packages)


def _export(task: Task, folder: Path, report: Progress) -> None:
    report(f"{task.request.name}: exporting to ONNX")
    task.export(folder / GRAPH)
    ask_original(task, folder, report)


def _write_precision(
    task: Task, reference: Reference, options: ConversionOptions, folder: Path, report: Progress
) -> None:
    from converters.precisions.write import write_precision

    if options.precision != "fp32":
        report(f"{reference.name}: writing the {options.precision} graph")
    target = folder / GRAPH
    write_precision(
        options.precision, reference.folder / GRAPH, target, lambda: task.calibration(reference)
    )
    report(f"{reference.name}: proving the {options.precision} graph against the original")
    proof = prove_graph(task, target, reference)
    if task.tests_graphs:
        report(f"{reference.name}: planting faults that the proof must detect")
        self_test = attempted(
            "the self-test", lambda: [graph_self_test(task, reference, options.precision)]
        )
        proof = replace(proof, checks=(*proof.checks, *self_test))
    exercised = task.exercised(reference)
    for line in exercised:
        report(f"{reference.name}: {line}")
    record = Record.start(
        name=reference.name,
        task=task.name,
        source=task.request.source,
        precision=options.precision,
        accepted=options.accepted,
        source_sha256=source_sha256(task),
        packages=task.reference_packages,
        options=task.request.options,
        proof=proof,
        engine=target,
        exercised=exercised,
    )
    record.require()
    record.save(folder)

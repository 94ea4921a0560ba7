"""Source -> FP32 graph and the original's answers -> a proved graph of the chosen precision.

The cache has two kinds of folder: the *original* (graph, steps, answers), made once for a source
and its samples whatever the pipeline is called, and the *converted* graph, one for each pipeline
name and precision, which exists only if its proof held.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from converters.cache import (
    PROOF_FILE,
    Progress,
    cached,
    content_key,
    conversion,
    files_sha256,
)
from converters.errors import ConversionError
from converters.proof.attempt import attempted
from converters.proof.checks import Check, Proof, at_most
from converters.proof.record import Record
from converters.proof.reference import Reference
from converters.proof.runner import OpenRunner, onnx_runner
from converters.proof.self_test import compared_layers
from converters.task import Task

METADATA, ANSWERS = "metadata.json", "original.npz"
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
    if options.precision not in task.offered():
        raise ConversionError(
            f"{task.name} has no precision {options.precision!r}: choose one of "
            f"{', '.join(task.offered())}"
        )
    name = task.request.name
    key = _key(task)
    original = conversion(name, key, lambda folder: _export(task, folder, report))
    reference = reference_in(original, name, task, options.precision)
    settings = json.dumps([name, key, options.precision, options.accepted])
    converted = conversion(
        name,
        _content_key(task, settings),
        lambda folder: _write_precision(task, reference, options, folder, report),
    )
    return Converted(
        task, reference, converted / task.graph_file, Record.load(converted / PROOF_FILE)
    )


def reference_in(folder: Path, name: str, task: Task, precision: str) -> Reference:
    """The reference stored in ``folder``, with the tolerances of this precision."""
    metadata: dict[str, object] = json.loads((folder / METADATA).read_text(encoding="utf-8"))
    with np.load(folder / ANSWERS) as stored:
        outputs = dict(stored)
    proved_as = _source_precision(metadata) if precision == "fp32" else precision
    return Reference(name, folder, metadata, outputs, task.tolerance(proved_as))


def _source_precision(metadata: Mapping[str, object]) -> str:
    """A source in FP16 is proved as FP16: its own rounding is not a fault of the conversion."""
    return "fp16" if metadata.get("half") else "fp32"


def ask_original(task: Task, folder: Path, report: Progress) -> None:
    """Write into ``folder`` all that a Reference needs, from the source alone: no graph."""
    metadata = task.metadata()
    for part in STEPS:
        (folder / part).mkdir()
    task.write_steps(folder)
    report(f"{task.request.name}: asking the original model")
    outputs = task.ask(folder, report)
    (folder / METADATA).write_text(json.dumps(metadata, ensure_ascii=False), encoding="utf-8")
    np.savez(folder / ANSWERS, **outputs)


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
        not_compared = task.not_compared
    elif runner is not onnx_runner:
        not_compared = "this engine does not show them; its answers were"
    elif not (reference.folder / task.graph_file).is_file():
        not_compared = "there is no FP32 graph of this source; the answers were"
    else:
        layers, not_compared = compared_layers(task, engine, reference)
        checks += [*layers, *_export_checks(task, reference)]
    note = f"Layers were not compared: {not_compared}." if not_compared else ""
    return Proof(f"{reference.name}: {what}", tuple(checks), note)


def _export_checks(task: Task, reference: Reference) -> list[Check]:
    """Whether the FP32 graph, with which layers are compared, is the original: its tables, and its
    answers within the limits of FP32. A fault of the export would be in the graph of every
    precision, and hide in their wider limits."""
    source = reference.folder / task.graph_file
    exact = task.tolerance(_source_precision(reference.metadata))
    tables = attempted("tables", lambda: task.table_checks(source, reference))
    if reference.tolerance == exact:
        return tables  # the answers are compared as those of the engine
    strict = replace(reference, tolerance=exact)
    checks = attempted("the FP32 graph", lambda: task.parity_checks(source, strict))
    failed = [check for check in checks if not check.passed]
    worst = failed[0].line() if failed else ""
    name = "the FP32 graph it was written from: checks that fail"
    return [*tables, at_most(name, len(failed), 0, worst)]


def put_graph(task: Task, folder: Path, report: Progress) -> None:
    """Put the FP32 graph of this source into ``folder``, so that layers are compared: that of an
    earlier conversion if the cache has it, else a new export. ExportFailed says why it failed."""
    original = cached(_key(task))
    if original is not None:
        (folder / task.graph_file).symlink_to(original / task.graph_file)
    elif task.tests_graphs:
        report(f"{task.request.name}: exporting to ONNX, to compare the layers")
        task.export(folder / task.graph_file)


def source_sha256(task: Task) -> str:
    """SHA-256 of the model and its samples, independent of the code that converts them."""
    source_options = dict(task.request.options)
    return files_sha256(task.files(), json.dumps([task.name, task.settings(), source_options]))


def _key(task: Task) -> str:
    """The original's key: without the pipeline's name, which only the proof's record has."""
    return _content_key(task, source_sha256(task))


def _content_key(task: Task, settings: str) -> str:
    """The key of what this module makes of the task."""
    return content_key(settings, __name__, type(task).__module__, packages=task.packages())


def _export(task: Task, folder: Path, report: Progress) -> None:
    report(f"{task.request.name}: exporting to {task.graph_file}")
    task.export(folder / task.graph_file)
    ask_original(task, folder, report)


def _write_precision(
    task: Task, reference: Reference, options: ConversionOptions, folder: Path, report: Progress
) -> None:
    if options.precision != "fp32":
        report(f"{reference.name}: writing the {options.precision} graph")
    target = folder / task.graph_file
    task.write_precision(options.precision, reference.folder / task.graph_file, target, reference)
    report(f"{reference.name}: proving the {options.precision} graph against the original")
    proof = prove_graph(task, target, reference)
    report(f"{reference.name}: planting faults that the proof must detect")
    planted = lambda: task.self_test(target, reference, options.precision)  # noqa: E731
    proof = replace(proof, checks=(*proof.checks, *attempted("the self-test", planted)))
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
        packages=task.packages(),
        options=task.request.options,
        proof=proof,
        engine=target,
        exercised=exercised,
    )
    record.require()
    record.save(folder)

"""Conversion: cached by content, refused if the proof fails, no files left behind on errors."""

import errno
import os
from dataclasses import replace

import pytest

from converters.cache import BUILDING, cache_root, conversion
from converters.conversion import (
    ConversionOptions,
    ask_original,
    convert,
    prove_graph,
    put_graph,
    reference_in,
    source_sha256,
)
from converters.errors import ConversionError, ProofFailed
from converters.proof import layers
from converters.proof.record import Record
from converters.task import ConversionRequest
from modelspec.held import held_folder
from tests.converters.small_task import Doubling


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def conversion_request(tmp_path):
    source = tmp_path / "weights.bin"
    source.write_bytes(b"some weights")
    return ConversionRequest("twice", str(source))


def _say(text: str) -> None:
    """Progress is not tested here."""


def _entries(cache):
    return sorted(path.name for path in (cache_root() / "conversions").iterdir())


def test_a_conversion_has_the_engine_the_steps_and_its_proof(conversion_request, cache):
    converted = convert(Doubling(conversion_request), ConversionOptions(), _say)
    assert converted.engine.is_file()
    assert converted.step_files("pre")["note.txt"].read_text() == "carried over"
    assert converted.step_files("post") == {}
    record = converted.record
    assert record.passed and record.task == "tensors" and record.precision == "fp32"
    assert record == Record.load(converted.engine.parent / "proof.json")
    assert "| ok | parity |" in (converted.engine.parent / "proof.md").read_text()


def test_a_source_answers_once_and_again_when_it_changes(conversion_request, tmp_path):
    first, second = Doubling(conversion_request), Doubling(conversion_request)
    assert (
        convert(first, ConversionOptions(), _say).engine
        == convert(second, ConversionOptions(), _say).engine
    )
    assert (first.asked, second.asked) == (1, 0)
    before = source_sha256(first)
    (tmp_path / "weights.bin").write_bytes(b"other weights")
    assert source_sha256(first) != before
    convert(second, ConversionOptions(), _say)
    assert second.asked == 1


def test_another_name_does_not_run_the_original_again(conversion_request):
    first = Doubling(conversion_request)
    second = Doubling(replace(conversion_request, name="double"))
    twice = convert(first, ConversionOptions(), _say)
    double = convert(second, ConversionOptions(), _say)
    assert (first.asked, second.asked) == (1, 0)
    assert (twice.reference.name, double.reference.name) == ("twice", "double")
    assert (twice.record.name, double.record.name) == ("twice", "double")
    assert twice.record.proofs[0].subject == "twice: the graph"
    assert double.record.proofs[0].subject == "double: the graph"
    assert twice.engine != double.engine


def test_another_precision_does_not_run_the_original_again(conversion_request):
    task = Doubling(conversion_request)
    assert (
        convert(task, ConversionOptions("fp16"), _say).engine
        != convert(task, ConversionOptions(), _say).engine
    )
    assert task.asked == 1


def test_a_wrong_graph_is_refused_with_sample_element_and_both_values(conversion_request, cache):
    task = Doubling(conversion_request, graph_factor=2.01)
    with pytest.raises(ProofFailed) as failure:
        convert(task, ConversionOptions(), _say)
    text = str(failure.value)
    assert "parity" in text and "'row 3' element 2" in text
    assert "24.12" in text and "original 24" in text
    # The original's answers stay in the cache (they are right), the converted graph does not.
    assert len(_entries(cache)) == 1


def test_a_wrong_export_is_refused_in_every_precision(conversion_request):
    """FP16 rounds this factor to 2, so its own answers and layers are right."""
    task = Doubling(conversion_request, graph_factor=2.00003)
    with pytest.raises(ProofFailed) as failure:
        convert(task, ConversionOptions("fp16"), _say)
    (line,) = [line for line in str(failure.value).splitlines() if "FAIL" in line]
    assert "the FP32 graph it was written from" in line and "original 24" in line


def test_without_a_cache_the_graph_is_exported_again(conversion_request, tmp_path):
    task = Doubling(conversion_request)
    said: list[str] = []
    put_graph(task, tmp_path, said.append)
    assert (tmp_path / "model.onnx").is_file()
    assert said == ["twice: exporting to ONNX, to compare the layers"]


def test_a_failed_proof_is_published_only_with_a_reason_which_is_recorded(conversion_request):
    task = Doubling(conversion_request, graph_factor=2.01)
    converted = convert(task, ConversionOptions(accepted="known | drift"), _say)
    assert not converted.record.passed and converted.record.accepted == "known | drift"
    text = (converted.engine.parent / "proof.md").read_text()
    assert "**The proof failed.**" in text and "known \\| drift" in text and "**FAIL**" in text


def test_a_proof_that_contradicts_itself_is_not_believed(conversion_request, tmp_path):
    record = convert(Doubling(conversion_request), ConversionOptions(), _say).record
    record.save(tmp_path)
    path = tmp_path / "proof.json"
    path.write_text(path.read_text().replace('"passed": true', '"passed": false', 1))
    with pytest.raises(ValueError, match="contradicts itself"):
        Record.load(path)


def test_a_task_refuses_a_precision_that_it_does_not_have(conversion_request):
    task = Doubling(conversion_request)
    task.precisions = ("fp32",)
    with pytest.raises(ConversionError, match="choose one of fp32"):
        convert(task, ConversionOptions("int8-weight-only"), _say)


def test_an_interrupt_leaves_no_files(conversion_request, cache):
    with pytest.raises(KeyboardInterrupt):
        convert(Doubling(conversion_request, fails_in="ask"), ConversionOptions(), _say)
    assert _entries(cache) == []


def test_a_full_disk_is_reported_and_leaves_no_files(conversion_request, cache):
    def full(folder):
        (folder / "half").write_bytes(b"x")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(ConversionError, match=r"No space left on device.*XDG_CACHE_HOME"):
        conversion("twice", "key", full)
    assert _entries(cache) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("proof.json", b""),  # as a power cut leaves it
        ("proof.json", None),
        ("model.onnx", b"another graph"),
        ("sha256.json", b""),
    ],
)
def test_a_folder_that_is_not_as_it_was_written_is_built_anew(conversion_request, name, content):
    engine = convert(Doubling(conversion_request), ConversionOptions(), _say).engine
    written = engine.read_bytes()
    damaged = engine.parent / name
    if content is None:
        damaged.unlink()
    else:
        damaged.write_bytes(content)
    said: list[str] = []
    again = convert(Doubling(conversion_request), ConversionOptions(), said.append)
    assert again.record.passed and again.engine.read_bytes() == written
    assert "twice: proving the fp32 graph against the original" in said
    said.clear()
    convert(Doubling(conversion_request), ConversionOptions(), said.append)
    assert said == []


def test_original_answers_that_are_damaged_are_asked_again(conversion_request, cache):
    reference = convert(Doubling(conversion_request), ConversionOptions(), _say).reference
    (reference.folder / "original.npz").write_bytes(b"")
    said: list[str] = []
    convert(Doubling(conversion_request), ConversionOptions(), said.append)
    assert "twice: asking the original model" in said
    assert len(_entries(cache)) == 2


def test_folders_of_killed_processes_are_removed(conversion_request, cache):
    folder = cache_root() / "conversions"
    (folder / f"{BUILDING}+held+0a1b2c3d").mkdir(parents=True)
    with held_folder(folder, BUILDING) as under_way:
        convert(Doubling(conversion_request), ConversionOptions(), _say)
        unfinished = [name for name in _entries(cache) if name.startswith(BUILDING)]
    assert unfinished == [under_way.name]


def test_a_graph_that_cannot_run_fails_its_proof(conversion_request, tmp_path):
    task = Doubling(conversion_request)
    reference = convert(task, ConversionOptions(), _say).reference
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    proof = prove_graph(task, tmp_path / "broken.onnx", reference)
    assert not proof.passed
    assert (
        proof.checks[0].name == "the graph: runs at all" and "broken.onnx" in proof.checks[0].worst
    )


def test_a_proof_says_when_layers_were_not_compared(conversion_request, tmp_path, monkeypatch):
    """In one line of proof.md and proof.json, so that nobody takes them for compared."""
    task = Doubling(conversion_request)
    converted = convert(task, ConversionOptions(), _say)
    assert converted.record.proofs[0].note == ""
    answers = tmp_path / "answers"
    answers.mkdir()
    ask_original(task, answers, _say)
    reference = reference_in(answers, "twice", task, "fp32")
    proof = prove_graph(task, converted.engine, reference)
    assert proof.note.startswith("Layers were not compared: there is no FP32 graph")
    said: list[str] = []
    put_graph(task, answers, said.append)
    assert prove_graph(task, converted.engine, reference).note == "", "the cache has the graph"
    assert not said

    def too_large(*_):
        raise ValueError("Message onnx.ModelProto exceeds maximum protobuf size of 2GB")

    monkeypatch.setattr(layers, "_with_outputs", too_large)
    proof = prove_graph(task, converted.engine, reference)
    assert proof.passed
    assert "cannot be taken apart (Message onnx.ModelProto exceeds" in proof.note
    record = replace(converted.record, proofs=(proof,))
    record.save(tmp_path)
    assert Record.load(tmp_path / "proof.json") == record
    assert "cannot be taken apart" in (tmp_path / "proof.md").read_text()

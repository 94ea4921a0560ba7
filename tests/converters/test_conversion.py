"""Conversion: cached by content, refused when the proof fails, nothing left when it breaks."""

import errno
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from converters.cache import BUILDING, cache_root, conversion
from converters.conversion import Variant, convert, prove_graph, source_sha256
from converters.errors import ConversionError, ProofFailed
from converters.record import Record
from converters.task import Order
from tests.converters.small_task import Doubling


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def order(tmp_path):
    source = tmp_path / "weights.bin"
    source.write_bytes(b"some weights")
    return Order("twice", str(source))


def _say(text: str) -> None:
    """Progress is not what is tested here."""


def _entries(cache):
    return sorted(path.name for path in (cache_root() / "conversions").iterdir())


def test_a_conversion_holds_the_engine_the_steps_and_its_proof(order, cache):
    converted = convert(Doubling(order), Variant(), _say)
    assert converted.engine.is_file()
    assert converted.step_files("pre")["note.txt"].read_text() == "carried over"
    assert converted.step_files("post") == {}
    record = converted.record
    assert record.passed and record.task == "tensors" and record.precision == "fp32"
    assert record == Record.load(converted.engine.parent / "proof.json")
    assert "| ok | parity |" in (converted.engine.parent / "proof.md").read_text()


def test_the_same_source_is_asked_once_and_a_changed_one_again(order, tmp_path):
    first, second = Doubling(order), Doubling(order)
    assert convert(first, Variant(), _say).engine == convert(second, Variant(), _say).engine
    assert (first.asked, second.asked) == (1, 0)
    before = source_sha256(first)
    (tmp_path / "weights.bin").write_bytes(b"other weights")
    assert source_sha256(first) != before
    convert(second, Variant(), _say)
    assert second.asked == 1


def test_another_name_does_not_ask_the_original_again(order):
    first = Doubling(order)
    second = Doubling(replace(order, name="double"))
    one, other = convert(first, Variant(), _say), convert(second, Variant(), _say)
    assert (first.asked, second.asked) == (1, 0)
    assert (one.case.name, other.case.name) == ("twice", "double")
    assert (one.record.name, other.record.name) == ("twice", "double")
    assert one.record.proofs[0].subject == "twice: the graph"
    assert other.record.proofs[0].subject == "double: the graph"
    assert one.engine != other.engine


def test_another_precision_does_not_ask_the_original_again(order):
    task = Doubling(order)
    assert convert(task, Variant("fp16"), _say).engine != convert(task, Variant(), _say).engine
    assert task.asked == 1


def test_a_wrong_graph_is_refused_with_sample_element_and_both_values(order, cache):
    task = Doubling(order, graph_factor=2.01)
    with pytest.raises(ProofFailed) as failure:
        convert(task, Variant(), _say)
    text = str(failure.value)
    assert "parity" in text and "'row 3' element 2" in text
    assert "24.12" in text and "original 24" in text
    # The original's answers are kept (they are right), the variant is not.
    assert len(_entries(cache)) == 1


def test_a_failed_proof_is_published_only_with_a_reason_which_is_kept(order):
    task = Doubling(order, graph_factor=2.01)
    converted = convert(task, Variant(accepted="known | drift"), _say)
    assert not converted.record.passed and converted.record.accepted == "known | drift"
    text = (converted.engine.parent / "proof.md").read_text()
    assert "**The proof failed.**" in text and "known \\| drift" in text and "**FAIL**" in text


def test_a_proof_that_contradicts_itself_is_not_believed(order, tmp_path):
    record = convert(Doubling(order), Variant(), _say).record
    record.save(tmp_path)
    path = tmp_path / "proof.json"
    path.write_text(path.read_text().replace('"passed": true', '"passed": false', 1))
    with pytest.raises(ValueError, match="contradicts itself"):
        Record.load(path)


def test_a_task_refuses_a_precision_that_it_does_not_have(order):
    task = Doubling(order)
    task.precisions = ("fp32",)
    with pytest.raises(ConversionError, match="choose one of fp32"):
        convert(task, Variant("w8"), _say)


def test_an_interrupt_leaves_nothing(order, cache):
    with pytest.raises(KeyboardInterrupt):
        convert(Doubling(order, fails_in="ask"), Variant(), _say)
    assert _entries(cache) == []


def test_a_full_disk_is_said_and_leaves_nothing(order, cache):
    def full(folder):
        (folder / "half").write_bytes(b"x")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(ConversionError, match=r"No space left on device.*XDG_CACHE_HOME"):
        conversion("twice", "key", "proof.json", full)
    assert _entries(cache) == []


def test_what_a_killed_process_left_is_cleared_up(order, cache):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    folder = cache_root() / "conversions"
    for pid in (ended.pid, os.getpid()):
        (folder / f"{BUILDING}{pid}-abc").mkdir(parents=True)
    convert(Doubling(order), Variant(), _say)
    left = [name for name in _entries(cache) if name.startswith(BUILDING)]
    assert left == [f"{BUILDING}{os.getpid()}-abc"]


def test_a_graph_that_cannot_run_fails_its_proof(order, tmp_path):
    task = Doubling(order)
    case = convert(task, Variant(), _say).case
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    proof = prove_graph(task, tmp_path / "broken.onnx", case)
    assert not proof.passed
    assert (
        proof.checks[0].name == "the graph: runs at all" and "broken.onnx" in proof.checks[0].worst
    )

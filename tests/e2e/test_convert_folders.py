"""Unfamiliar models are converted, proved and served, or refused when they should be."""

import contextlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from converters.errors import ConversionError
from converters.tasks.text.samples import default_texts
from serving.errors import ServingError
from tests.command_line import tidegate
from tests.running import environment, launch, stop, wait_ready
from tests.tiny_models import LABELS, save_classifier
from tidegate.app.convert import ConvertOptions, run
from tidegate.app.paths import Paths

TEXTS = (
    "Where is my parcel?",
    "I want my money back, and I want it now!",
    "包裹在哪里",
    "thanks",
)


def _ignore_progress(text: str) -> None:
    """Ignore progress messages."""


def _convert(home, source, *arguments: str) -> subprocess.CompletedProcess[str]:
    task = ("--task", "text-classification") if "--task" not in arguments else ()
    return tidegate(home, "convert", str(source), *task, *arguments)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_classifier("bert", folder / "bert")
    save_classifier("roberta", folder / "roberta", problem_type="multi_label_classification")
    return folder


@pytest.fixture(scope="module")
def served(models, tmp_path_factory):
    """A stack that serves both models."""
    home = tmp_path_factory.mktemp("models")
    for name in ("bert", "roberta"):
        task = ("--task", "text-classification", "--name", f"mood_{name}")
        run = tidegate(home, "convert", str(models / name), *task)
        assert run.returncode == 0, run.stderr
    running = launch(home, "mood_bert", "mood_roberta")
    wait_ready(running)
    yield running
    assert stop(running) == 0


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_the_endpoint_gives_the_originals_answers(served, models, name):
    """From raw text over REST, against transformers' own pipeline."""
    from transformers import pipeline

    original = pipeline("text-classification", model=str(models / name), top_k=None, device="cpu")
    rows = [{"text": text} for text in TEXTS]
    response = served.post(f"/v1/mood_{name}", json={"inputs": rows})
    assert response.status_code == 200, response.text
    for mine, theirs in zip(response.json()["outputs"], original(list(TEXTS)), strict=True):
        expected = {label["label"]: label["score"] for label in theirs}
        assert {label["label"] for label in mine["labels"]} == set(LABELS)
        for label in mine["labels"]:
            assert label["score"] == pytest.approx(expected[label["label"]], abs=1e-4)
        scores = [label["score"] for label in mine["labels"]]
        assert scores == sorted(scores, reverse=True)


def test_it_is_listed_documented_and_ready_without_code(served):
    names = {model["id"] for model in served.get("/v1/models").json()["data"]}
    assert names == {"mood_bert", "mood_roberta"}
    document = served.get("/openapi.json").json()
    assert "/v1/mood_bert" in document["paths"]
    assert served.get("/v2/models/mood_bert/ready").status_code == 200


def test_a_text_that_is_too_long_is_refused_or_cut(served):
    long = {"text": "parcel " * 100}
    assert served.post("/v1/mood_bert", json=long).status_code == 422
    response = served.post("/v1/mood_bert", json={**long, "truncate": True})
    assert response.json()["token_count"] == 64


def _copy(models, target):
    shutil.copytree(models / "bert", target)
    return target


def _edit(folder, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _without_config(folder):
    (folder / "config.json").unlink()


def _config_is_no_json(folder):
    (folder / "config.json").write_text("{" * 100_000)


def _truncated(folder):
    weights = folder / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)


def _no_weights(folder):
    (folder / "model.safetensors").unlink()


def _remote_code(folder):
    _edit(folder, auto_map={"AutoModelForSequenceClassification": "evil.Model"})
    (folder / "evil.py").write_text("open('/tmp/tidegate-was-here', 'w')")


def _unknown_architecture(folder):
    _edit(folder, model_type="no_such_model")


class _Payload:
    def __reduce__(self):
        return (os.system, ("touch /tmp/tidegate-was-here",))


def _pickle(folder):
    (folder / "model.safetensors").unlink()
    with (folder / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"a": _Payload()}, file)


def _labels_that_do_not_match(folder):
    _edit(folder, id2label={"0": "one", "1": "two"}, label2id={"one": 0, "two": 1})


def _labels_that_skip(folder):
    _edit(folder, id2label={"0": "a", "2": "b", "3": "c"}, label2id={"a": 0, "b": 2, "c": 3})


def _shards_outside(folder):
    (folder / "model.safetensors").rename(folder / "elsewhere.safetensors")
    index = {"metadata": {}, "weight_map": {"x": "../../../../etc/passwd"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _no_tokenizer(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def _nan_weights(folder):
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"] = torch.full_like(weights["classifier.bias"], float("nan"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


REFUSED = {
    _without_config: "config.json",
    _config_is_no_json: "is not JSON",
    _truncated: "cannot be read safely",
    _no_weights: "has no weights",
    _remote_code: "never allowed",
    _unknown_architecture: "transformers cannot load",
    _pickle: "cannot be read safely",
    _labels_that_do_not_match: "transformers cannot load",
    _labels_that_skip: "skips a number",
    _shards_outside: "outside the folder",
    _no_tokenizer: "has no tokenizer",
    _nan_weights: "is not finite",
}


@pytest.mark.parametrize("spoil", REFUSED, ids=lambda spoil: spoil.__name__.strip("_"))
def test_a_folder_that_is_broken_or_unsafe_is_refused(models, tmp_path, spoil):
    folder = _copy(models, tmp_path / "model")
    spoil(folder)
    options = ConvertOptions(str(folder), "text-classification", "mood", force=True)
    with pytest.raises(ConversionError) as refusal:
        run(options, Paths(tmp_path), _ignore_progress)
    assert REFUSED[spoil] in str(refusal.value)
    assert not (tmp_path / "model_repository").exists()
    assert not Path("/tmp/tidegate-was-here").exists()


def test_a_refusal_on_the_command_line_is_one_line_and_exit_code_1(models, tmp_path):
    folder = _copy(models, tmp_path / "model")
    _no_weights(folder)
    run = _convert(tmp_path, folder, "--name", "mood")
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.startswith("tidegate: ") and run.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name", "text_embedding"], "is a known pipeline"),
        (["--name", "../escape"], "illegal model name"),
        (["--name", "completions"], "reserved"),
        (["--task", "no-such-task", "--name", "x"], "'no-such-task' is not one of"),
        ([], "pass --name"),
        (["--name", "x", "--samples", "/nonexistent"], "does not exist"),
        (["--name", "x", "--precision", "fp32,int4"], "choose from fp32, fp16"),
        (["--name", "x", "--precision", "fp32,fp32"], "each once"),
    ],
)
def test_a_wrong_command_line_is_refused_at_once(models, tmp_path, arguments, message):
    run = _convert(tmp_path, models / "bert", *arguments)
    assert run.returncode == 2
    assert message in run.stderr


def test_samples_are_the_users_and_bad_ones_are_refused(models, tmp_path):
    samples = tmp_path / "samples.txt"
    options = ConvertOptions(str(models / "bert"), "text-classification", "x", samples)
    for content, message in ((b"\n  \n", "has no samples"), (b"\xff\xfe\x00", "not UTF-8")):
        samples.write_bytes(content)
        with pytest.raises(ConversionError, match=message):
            run(options, Paths(tmp_path), _ignore_progress)
    samples.write_text("\n".join(default_texts(24)))  # as in test_optimize: exported once
    run(options, Paths(tmp_path), _ignore_progress)
    proof = json.loads((tmp_path / "model_repository/x_onnx/1/proof.json").read_text())
    assert proof["passed"] and len(proof["proofs"]) == 2
    # The same model is already published; another one of this name may not replace it.
    before = (tmp_path / "model_repository/x_onnx/1/proof.json").stat().st_mtime_ns
    run(options, Paths(tmp_path), _ignore_progress)
    with pytest.raises(ServingError, match="the name is taken"):
        other = replace(options, source=str(models / "roberta"))
        run(other, Paths(tmp_path), _ignore_progress)
    assert (tmp_path / "model_repository/x_onnx/1/proof.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("seconds", [1.0, 4.0, 8.0, 13.0])
def test_an_interrupt_leaves_nothing_half_written(models, tmp_path, seconds):
    """Whatever it is doing: importing, exporting, running the original, serving."""
    command = [sys.executable, "-m", "tidegate", "convert", str(models / "bert"), "--name", "mood"]
    process = subprocess.Popen(
        [*command, "--task", "text-classification"],
        env={**environment(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=300)
    published = (tmp_path / "model_repository" / "mood" / "config.pbtxt").exists()
    assert published == (process.returncode == 0), output
    assert b"Traceback" not in output
    assert not list((tmp_path / "cache").rglob(".building*"))
    assert {path.name for path in tmp_path.glob(".model_repository.staging/*")} <= {"lock"}
    assert not [p for p in psutil.process_iter(["environ"]) if _is_of(p, tmp_path)]


def _is_of(process: psutil.Process, home: Path) -> bool:
    return (process.info["environ"] or {}).get("TIDEGATE_HOME") == str(home)

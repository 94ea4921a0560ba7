"""Every task and precision that is offered: a proof of it plants the ten faults, and detects them.

The pairs come from the registry: a new task or precision fails here until it has a tiny model and a
self-test of its own.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from sklearn.linear_model import Ridge
from sklearn.naive_bayes import GaussianNB

from converters.conversion import ConversionOptions, convert
from converters.proof.self_test import NAME
from converters.task import ConversionRequest, Task
from tests.converters.proof.two_layers import save_two_layers
from tests.tiny_image_models import save_image_classifier
from tests.tiny_models import language_model, save_classifier, save_embedder, save_tagger
from tests.tiny_tabular_models import DIABETES, save
from tidegate.app.task_registry import TASKS

ANSWERS = ("constant", "negated", "scaled", "zeroed", "shifted", "swapped", "labels rotated")
GRAPHS = ("one layer skipped", "mask dropped", "calibration on zeros")
PAIRS = [(task, precision) for task, entry in TASKS.items() for precision in entry.precisions()]


SOURCES: dict[str, Callable[[Path], Path]] = {
    "embedding": lambda folder: save_embedder(
        "bert", folder / "m", Pooling(32, "mean"), Normalize()
    ),
    "text-classification": lambda folder: save_classifier(
        "distilbert", folder / "m", dim=64, hidden_dim=128, n_layers=1
    ),
    "text-ranking": lambda folder: save_classifier(
        "distilbert", folder / "m", ["relevant"], dim=128, hidden_dim=256, n_layers=1
    ),
    "token-classification": lambda folder: save_tagger(
        "distilbert", folder / "m", dim=64, hidden_dim=128, n_layers=1
    ),
    "image-classification": lambda folder: save_image_classifier("vit", folder / "m"),
    "causal-lm": lambda folder: language_model(folder / "m"),
    "tensors": lambda folder: save_two_layers(folder / "m.onnx", np.random.default_rng(2)),
    "tabular-classification": lambda folder: save(GaussianNB(), folder / "m.skops"),
    "tabular-regression": lambda folder: save(Ridge(), folder / "m.skops", DIABETES),
}


def _impossible(task: Task, precision: str) -> Iterator[str]:
    """The faults that there is nothing to plant into."""
    if not task.has_mask:
        yield "mask dropped"
    if precision != "int8-static":
        yield "calibration on zeros"
    if not task.tests_graphs and task.name != "causal-lm":
        yield "one layer skipped"  # of trees and linear models
    if task.name in ("tabular-regression", "causal-lm", "text-ranking"):
        yield "labels rotated"  # a single number


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    paths: dict[str, Path] = {}

    def source(task: str) -> Path:
        if task not in paths:
            paths[task] = SOURCES[task](tmp_path_factory.mktemp(task))
        return paths[task]

    return source


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(("name", "precision"), PAIRS)
def test_the_ten_faults_are_planted_and_detected(name, precision, sources):
    task = TASKS[name].open_task(ConversionRequest("t", str(sources(name))))
    record = convert(task, ConversionOptions(precision), lambda text: None).record
    tests = [
        check for proof in record.proofs for check in proof.checks if check.name.startswith(NAME)
    ]
    assert tests
    assert [check.line() for check in tests if not check.passed] == []
    detected = {
        fault
        for check in tests
        for fault in re.findall(r"detected: ([^;]*)", check.worst)[0].split(", ")
    }
    expected = set(ANSWERS) | set(GRAPHS)
    assert expected - detected == set(_impossible(task, precision))

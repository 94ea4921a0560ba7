"""The tolerances: the page matches the code, and they catch broken precisions."""

from dataclasses import astuple
from math import inf, nan
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from converters.cosine import row_cosines
from converters.errors import ConversionError
from converters.precisions.write import PRECISIONS
from converters.proof.closeness import closeness, same_decision, same_neighbour
from converters.proof.tolerance import (
    LAYERS,
    LIMITS,
    NUMBERS,
    SHARES,
    clear_margin,
    grade,
    graded,
    tolerance,
)
from tests.converters.precisions.test_precision import build, run, sentences

PAGE = Path(__file__).parents[3] / "docs" / "precisions.md"


def _rows(heading: str, first: str = "") -> list[list[str]]:
    """The rows of the section's table whose header begins with ``first``."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    tables = [part for part in section.split("\n\n") if part.strip().startswith(f"| {first}")]
    lines = [line for line in tables[0].strip().splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def test_the_page_has_the_tolerances_of_the_code():
    page = {}
    for task, precision, *numbers, why in _rows("Tolerances", "task"):
        values = tuple(inf if number == "-" else float(number) for number in numbers)
        page[task, precision] = (values, why)
    code = {
        pair: (tuple(getattr(limits, field) for field in NUMBERS), why)
        for pair, (limits, why) in LIMITS.items()
    }
    assert page == code
    shares = {
        precision: (tuple(map(float, numbers)), why)
        for precision, *numbers, why in _rows("Tolerances", "precision | largest")
    }
    assert shares == {p: (astuple(limits), why) for p, (limits, why) in SHARES.items()}
    layers = {
        precision: (tuple(inf if number == "-" else float(number) for number in numbers), why)
        for precision, *numbers, why in _rows("Tolerances", "precision | exact")
    }
    assert layers == {p: (astuple(limits), why) for p, (limits, why) in LAYERS.items()}


def test_the_page_names_every_precision():
    assert [row[0].strip("`") for row in _rows("Which one")] == list(PRECISIONS)


def test_every_pair_has_limits_or_says_which_do():
    tasks = dict.fromkeys(task for task, _ in LIMITS)
    for task in tasks:
        for precision in PRECISIONS:
            if (task, precision) in LIMITS:
                limits = tolerance(task, precision)
                assert 0 < limits.mean <= limits.difference
                assert 0 < clear_margin(limits) <= 0.05
    with pytest.raises(
        ConversionError, match=r"tabular-classification.*'int8-weight-only'.*choose from fp32"
    ):
        tolerance("tabular-classification", "int8-weight-only")
    with pytest.raises(ConversionError, match=r"no tolerances for the task 'chess'.*embedding"):
        tolerance("chess", "fp32")


def test_grades():
    assert [grade(precision) for precision in PRECISIONS] == [
        *["answers do not depend on the batch"] * 5,
        "answers depend on the batch",
    ]
    assert graded(1e-6) == grade("int8-weight-only")
    assert graded(0.04) == graded(nan) == grade("int8-dynamic")


def test_closeness_measures_what_it_says():
    expected = np.array([[0.0, 1.0], [1.0, 0.0], [0.51, 0.49]])
    actual = np.array([[0.0, 0.9], [1.0, 0.0], [0.49, 0.51]])
    measured = closeness(actual, expected, same_decision(actual, expected, 0.05))
    assert measured.difference == pytest.approx(0.1)
    assert measured.mean == pytest.approx(0.12 / 3)
    assert measured.agreement == 1.0  # the third was not clear
    assert same_decision(actual, expected, 0.01) == pytest.approx(2 / 3)
    assert same_decision(actual[:, :1], expected[:, :1], 0.01) == 1.0
    assert measured.mean_cosine == pytest.approx(np.mean([row_cosines(actual, expected)]))
    relative = closeness(np.array([[101.0]]), np.array([[100.0]]), 1.0, relative=True)
    assert relative.difference == pytest.approx(0.01)
    assert not closeness(np.full((3, 2), nan), expected, 1.0).difference <= 1
    vectors = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]])
    assert same_neighbour(vectors, vectors) == 1.0


def _within(measured, limits) -> bool:
    return (
        measured.difference <= limits.difference
        and measured.mean <= limits.mean
        and measured.cosine >= limits.cosine
        and measured.agreement >= limits.agreement
    )


@pytest.mark.parametrize("precision", ["int8-weight-only", "int8-static", "int8-dynamic"])
@pytest.mark.parametrize("fault", ["scale", "labels"])
def test_broken_precisions_are_outside(tmp_path, precision, fault):
    """One layer's scales have the wrong sign, or two labels are swapped."""
    source, target = build(tmp_path, "text-classification", precision)
    if fault == "scale":
        model = onnx.load(target)
        tensor = next(t for t in model.graph.initializer if t.name in ("w_v_scales", "w_v_scale"))
        tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
        onnx.save(model, target)
    feeds = sentences()
    actual, expected = run(target, *feeds), run(source, *feeds)
    if fault == "labels":
        actual = actual[:, [1, 0, *range(2, actual.shape[1])]]
    limits = tolerance("text-classification", precision)
    measured = closeness(actual, expected, same_decision(actual, expected, clear_margin(limits)))
    assert not _within(measured, limits)

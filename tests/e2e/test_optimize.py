"""``tidegate optimize`` on a tiny model: measured, picked, published, resumed, refused cleanly."""

import json
from datetime import timedelta

import pytest
from click import BadParameter
from click.testing import CliRunner

from converters.optimize import benchmark_process, timing
from converters.proof.record import Record
from converters.tasks.text.samples import default_texts
from serving.repository.model_repository import ModelRepository
from tests.tiny_models import save_classifier
from tidegate.app.optimize import convert_line, run
from tidegate.app.optimize_candidates import original_options
from tidegate.app.optimize_options import BOTH, OptimizeOptions
from tidegate.app.paths import Paths
from tidegate.app.published import engine_file
from tidegate.cli import cli
from tidegate.commands.options import Duration


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("optimize")
    save_classifier("bert", folder / "model")
    (folder / "texts.txt").write_text("\n".join(default_texts(24)))
    return folder


@pytest.fixture(scope="module")
def options(model) -> OptimizeOptions:
    return OptimizeOptions(
        name="mood",
        source=str(model / "model"),
        task="text-classification",
        samples=model / "texts.txt",
        only="model",
        budget_s=240.0,
        precisions=("fp32", "int8-weight-only", "int8-per-row", "int8-dynamic"),
        publish=True,
    )


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(benchmark_process, "SECONDS", 0.01)
    monkeypatch.setattr(timing, "PASSES", 1)


@pytest.mark.timeout(400)  # a conversion and two proofs on a busy machine
def test_a_tiny_model_is_measured_picked_and_published(options, model, quick):
    paths, messages = Paths(model), []
    tables = []
    result = run(options, paths, messages.append, show=tables.append)
    assert result.is_picked
    folder = model / ".tidegate" / "optimize" / "mood"
    document = json.loads((folder / "optimize.json").read_text())
    rows = {row["name"]: row for row in document["candidates"]}
    assert set(rows) == {
        *("original", "fp32", "int8-weight-only", "int8-per-row", "int8-dynamic"),
        *("fp32@disable", "fp32@basic", "fp32@extended"),
    }
    for row in rows.values():
        assert set(row["times"]) == {cell.name for cell in benchmark_process.CELLS}
        assert row["memory_mb"] > 0
        assert row["reason"] == ""
    assert rows["original"]["ratios"]["rows8_threads1"] == 1
    assert rows["fp32"]["accuracy"]["failed"] == []
    assert rows["fp32"]["accuracy"]["closeness"]["agreement"] == 1
    assert document["pick"] in ("fp32", "int8-weight-only", "int8-per-row")
    # The pick is active now, proved under its own tolerances.
    record = Record.load(
        engine_file(ModelRepository(paths.repository), "mood").with_name("proof.json")
    )
    assert (record.precision, record.passed) == (document["pick"], True)
    assert f"{document['pick']} <- pick" in "\n".join(tables)
    assert result.documents["model"]["pick"] == document["pick"]
    assert (folder / "optimize.png").stat().st_size > 10_000
    assert (folder / "optimize.svg").is_file()
    assert any("pass 1 of" in line for line in messages)


def test_measurements_are_cached(options, model, quick):
    """In the same folder as the previous test: nothing is timed or compared again."""
    messages: list[str] = []
    again = OptimizeOptions(**{**vars(options), "publish": False})
    assert run(again, Paths(model), messages.append, show=str).is_picked
    assert not [line for line in messages if "pass" in line or "comparing" in line]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "there is no model 'nothing': give its original with --against"),
        (["text_embedding", "--budget", "soon"], "90s, 10m, 24h or 30d"),
        (["text_embedding", "--against", "./other"], "leave out --against"),
        (["mood", "--against", "no-such-folder"], "pass --task"),
    ],
)
def test_invalid_options_are_a_usage_error(arguments, message, tmp_path, monkeypatch):
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path))
    result = CliRunner().invoke(cli, ["optimize", "--only", "model", *arguments])
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())
    assert not (tmp_path / ".tidegate").exists()


def test_durations():
    read = Duration().convert
    durations = [read(text, None, None) for text in ("90", "90s", "1.5m", "1h", "2d")]
    assert [duration.total_seconds() for duration in durations] == [90, 90, 90, 3600, 2 * 86400]
    assert Duration(allow_zero=True).convert("0s", None, None) == timedelta()
    with pytest.raises(BadParameter, match="90s, 10m, 24h or 30d"):
        read("0s", None, None)


def test_both_parts_run_unless_one_is_selected():
    assert OptimizeOptions("mood").parts == BOTH
    assert OptimizeOptions("mood", only="config").parts == ("config",)


def test_the_command_that_publishes(options, model):
    assert convert_line(OptimizeOptions("text_embedding"), "int8-weight-only") == (
        "tidegate convert text_embedding --precision int8-weight-only --force"
    )
    assert convert_line(options, "int8-per-row") == (
        f"tidegate convert {model}/model --name mood --task text-classification "
        f"--samples {model}/texts.txt --precision int8-per-row --force"
    )


def test_the_source_options_of_the_conversion_are_kept(tmp_path):
    """optimize accepts --preprocess of convert, and its last line repeats it."""
    options = OptimizeOptions(
        "things", "./vit", "image-classification", source_options={"preprocess": "half"}
    )
    said = original_options(options, Paths(tmp_path))
    assert said == {"preprocess": "half"}
    line = convert_line(options, "int8-weight-only", said)
    assert "--preprocess half --precision int8-weight-only" in line
    run = CliRunner().invoke(cli, ["optimize", "nobody", "--preprocess", "half", "--base", "b"])
    assert "give its original with --against" in run.output

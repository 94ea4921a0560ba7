"""The report prints each floor and whether it held, and saves everything as JSON."""

import json

from loadtests.bench.passes import Rounds
from loadtests.bench.report import Floor, Section, markdown, missed, rows, save
from loadtests.bench.stack import newest
from loadtests.bench.wrk import Figures

ROUNDS = Rounds({"direct": [Figures(1000, 1, 2, 3)], "ours": [Figures(250, 4, 5, 6)]})
SECTION = Section(
    "Gateway",
    rows(ROUNDS, "direct", "8 connections"),
    [Floor("ours at 8", 0.25, 0.30), Floor("direct at 8", 1.0, 1.0)],
    ["A note."],
)


def test_a_floor_that_is_just_reached_holds():
    assert [floor.what for floor in missed([SECTION])] == ["ours at 8"]


def test_the_markdown_has_the_table_and_the_floors():
    text = markdown({"cpu": "a fast one", "cores": "2"}, [SECTION])
    assert text.startswith("cpu: a fast one, cores: 2\n")
    row = "| ours | 8 connections | 250 | 0.25 | 0.25-0.25 | 4.00 | 5.00 | 6.00 |"
    assert row in text.splitlines()
    assert "- floor MISSED: ours at 8: 0.25, at least 0.30" in text
    assert "- floor held: direct at 8: 1.00, at least 1.00" in text


def test_the_saved_json_has_every_figure(tmp_path):
    file = save(tmp_path / "results", "ours", {"cores": "2"}, [SECTION])
    document = json.loads(file.read_text())
    assert document["machine"] == {"cores": "2"}
    section = document["sections"][0]
    assert section["rows"][1]["figures"] == {"rps": 250, "p50_ms": 4, "p95_ms": 5, "p99_ms": 6}
    assert [floor["held"] for floor in section["floors"]] == [False, True]
    assert file.with_suffix(".md").read_text().startswith("cores: 2")


def test_the_newest_version_is_a_number_not_a_word(tmp_path):
    for version in ("2", "10", "configs"):
        (tmp_path / version).mkdir()
    assert newest(tmp_path).name == "10"

"""The report prints each floor and whether it held, and saves everything as JSON."""

import json

from loadtests.bench.passes import Ratio, Rounds
from loadtests.bench.report import Floor, Section, Verdict, floors_with, markdown, rows, save
from loadtests.bench.stack import newest
from loadtests.bench.wrk import Figures

CPU_US = {"tritonserver": 60.0, "gateway": 140.4, "up": 0.3}
ROUNDS = Rounds({"direct": [Figures(1000, 1, 2, 3)], "ours": [Figures(250, 4, 5, 6, CPU_US)]})
SECTION = Section(
    "Gateway",
    rows(ROUNDS, "direct", "8 connections"),
    [
        Floor("ours at 8", Ratio(0.25, 0.2, 0.29), 0.30),
        Floor("direct at 8", Ratio(1.1, 1.0, 1.2), 1.0),
        Floor("ours at 32", Ratio(0.35, 0.2, 0.4), 0.30),
    ],
    ["A note."],
)


def test_a_floor_is_judged_by_the_whole_band():
    verdicts = {floor.what: floor.verdict for floor in SECTION.floors}
    assert verdicts == {
        "ours at 8": Verdict.MISSED,
        "direct at 8": Verdict.HELD,  # just reached
        "ours at 32": Verdict.UNCLEAR,
    }
    assert floors_with(Verdict.UNCLEAR, [SECTION]) == [SECTION.floors[2]]


def test_the_markdown_has_the_table_and_the_floors():
    text = markdown({"cpu": "a fast one", "cores": "2"}, [SECTION])
    assert text.startswith("cpu: a fast one, cores: 2\n")
    row = (
        "| ours | 8 connections | 250 | 0.25 | 0.25-0.25 | 4.00 | 5.00 | 6.00 | 201 |  "
        "| gateway 140, tritonserver 60 |"
    )
    assert row in text.splitlines()
    assert "- floor MISSED: ours at 8: 0.25 (0.20-0.29), at least 0.30" in text
    assert "- floor held: direct at 8: 1.10 (1.00-1.20), at least 1.00" in text
    assert "- floor too noisy to judge: ours at 32: 0.35 (0.20-0.40), at least 0.30" in text


def test_the_saved_json_has_every_figure(tmp_path):
    file = save(tmp_path / "results", "ours", {"cores": "2"}, [SECTION])
    document = json.loads(file.read_text())
    assert document["machine"] == {"cores": "2"}
    section = document["sections"][0]
    assert section["rows"][1]["figures"] == {
        "rps": 250,
        "p50_ms": 4,
        "p95_ms": 5,
        "p99_ms": 6,
        "cpu_us": CPU_US,
    }
    assert [floor["verdict"] for floor in section["floors"]] == [
        *("MISSED", "held", "too noisy to judge")
    ]
    assert file.with_suffix(".md").read_text().startswith("cores: 2")


def test_the_newest_version_is_a_number_not_a_word(tmp_path):
    for version in ("2", "10", "configs"):
        (tmp_path / version).mkdir()
    assert newest(tmp_path).name == "10"

"""The report of a config search, for people and as JSON."""

import dataclasses
import json

from serving.tuning.closed_loop import Figures
from serving.tuning.search import Move, SearchState
from serving.tuning.setting import Setting
from serving.tuning.trial import FAILED, MEASURED, Trial
from serving.tuning.tune import Result
from tidegate.app.config_search_report import ConfigSearchReport

DEFAULT = Setting(2, 1, 64, True, 0, (16, 256), 1)
BEST = dataclasses.replace(DEFAULT, max_batch=8)
SLOW, FAST = Figures(100.0, 5, 8, 20.0, 900, 0.1), Figures(150.0, 4, 6, 19.0, 900, 0.9)
WINNER = Trial(BEST, MEASURED, "", 1.5, 0.01, SLOW, FAST)
FAILURE = Trial(Setting(instances=4), FAILED, "out of memory")
RESULT = Result(
    name="mood",
    context={
        "connections": 32,
        "default": DEFAULT.as_dict(),
        "machine": {"cores": 2, "cpu": "a CPU"},
        "tools": {},
        "files": "x",
    },
    trials=[WINNER, FAILURE],
    search=SearchState(BEST, 1.5, (Move("max batch", DEFAULT, BEST, 1.0, 1.5),), None),
    finals=[WINNER],
    control=Trial(DEFAULT, MEASURED, "", 1.01, 0.01, SLOW, SLOW),
    winner=WINNER,
    p99_ms=None,
    is_complete=True,
    seconds=60.0,
)


def lines_of(result, written=(), committed=()):
    return "\n".join(ConfigSearchReport(result, written, committed).lines())


def test_the_gain_its_bound_its_noise_and_its_cost_are_reported():
    text = lines_of(RESULT, ["mood/configs/tuned.pbtxt"], ["mood_onnx"])
    for part in (
        "max batch: max_batch 64 -> 8: 1.00x -> 1.50x",
        "max_batch 64 -> 8: 1.50x (+-1 %)",
        "1.50x the default at 32 connections",
        "p99 <= 22 ms (the default's own p99 plus 10 %)",
        "a copy of itself, the same way: 1.01x",
        "0.90 of 2 cores (a CPU)",
        "that is a lot",
        "at most 8 rows, not 64",
        'failed: {"instances":4}: out of memory',
        "written: mood/configs/tuned.pbtxt",
        "config.pbtxt of mood_onnx",
    ):
        assert part in text


def test_a_search_that_found_nothing_says_so():
    nothing = dataclasses.replace(RESULT, winner=None)
    assert "the default stays" in lines_of(nothing)
    early = dataclasses.replace(nothing, finals=[], is_complete=False)
    assert "nothing was changed" in lines_of(early) and "run it again" in lines_of(early)


def test_the_json_has_the_same_content():
    report = json.loads(json.dumps(ConfigSearchReport(RESULT, (), ()).as_json()))
    assert report["measurement"]["ratio"] == 1.5
    assert report["measurement"]["p99_bound_ms"] == 22.0
    assert report["moves"][0]["serving_parameter"] == "max batch"
    assert [trial["status"] for trial in report["trials"]] == ["measured", "failed"]
    nothing = ConfigSearchReport(dataclasses.replace(RESULT, winner=None), (), ())
    assert nothing.as_json()["measurement"] is None

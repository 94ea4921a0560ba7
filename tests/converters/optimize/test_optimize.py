"""The arithmetic of ``tidegate optimize`` on invented figures: front, pick, reasons, budget."""

import json
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from converters.errors import ConversionError
from converters.optimize import measuring, timing
from converters.optimize.accuracy import Accuracy, measured_tolerance
from converters.optimize.benchmark_process import CELLS, Times
from converters.optimize.budget import Budget, OutOfTime
from converters.optimize.candidates import ORIGINAL, Candidate, candidates
from converters.optimize.chart import CHART_FILES, draw, points
from converters.optimize.findings import Findings
from converters.optimize.measurement_cache import MeasurementCache
from converters.optimize.measuring import LEFT_OUT, Bench, time_and_prove
from converters.optimize.pareto import HEADLINE, Allowed, Row, front, pick, refusals
from converters.optimize.table import lines
from converters.optimize.timing import PASSES, TimedCandidate, Timer, Timings
from converters.proof.closeness import Closeness
from converters.proof.tolerance import tolerance
from converters.task import ConversionRequest
from tests.converters.small_task import Doubling

GRADES = {True: "answers do not depend on the batch", False: "answers depend on the batch"}


def accuracy(mean_cosine=1.0, cosine=None, agreement=1.0, failed=(), invariant=True) -> Accuracy:
    lowest = mean_cosine if cosine is None else cosine
    closeness = Closeness(0.01, 0.005, lowest, mean_cosine, agreement)
    return Accuracy(closeness, 1500, tuple(failed), invariant, GRADES[invariant])


def row(precision, speed, measured: Accuracy | None, level="all") -> Row:
    times = {cell.name: Times(speed * cell.rows / 8, 1.0, 2.0) for cell in CELLS}
    ratios = {cell.name: speed / 100 for cell in CELLS}
    return Row(
        Candidate(precision, level), measured, times, ratios, 3, size_mb=90.0, memory_mb=120.0
    )


ROWS = (
    row(ORIGINAL, 100, None),
    row("fp32", 120, accuracy()),
    row("fp16", 110, accuracy(0.99999)),
    row("int8-weight-only", 140, accuracy(0.9995, 0.9974, 0.98)),
    row("int8-static", 250, accuracy(0.98, 0.95, 0.84)),
    row("int8-per-row", 200, accuracy(0.9994, 0.995, 0.985)),
    row("int8-dynamic", 260, accuracy(0.99, 0.955, 0.88, invariant=False)),
    row("fp32", 130, accuracy(), "basic"),
    row("fp16", 180, accuracy(0.8, failed=["parity: lowest cosine"]), "basic"),
)


def names(rows) -> list[str]:
    return [row.candidate.name for row in rows]


ANY = Allowed()


def findings(rows=ROWS, allowed=ANY) -> Findings:
    return Findings("mini", "embedding", tuple(rows), 1500, allowed, "torch eager", {"cores": 2})


def test_the_front_is_what_no_other_beats_in_both():
    assert names(front(ROWS)) == ["int8-dynamic", "int8-per-row", "int8-weight-only", "fp32@basic"]
    duplicate = replace(ROWS[5], candidate=Candidate("int8-weight-only", "basic"))
    assert len(front([ROWS[5], duplicate])) == 1, "a tie is one point"
    assert (
        front([row(ORIGINAL, 100, None), Row(Candidate("int8-weight-only"), reason="ended")]) == []
    )


@pytest.mark.parametrize(
    ("allowed", "picked"),
    [
        (Allowed(), "int8-static"),
        (Allowed(least_agreement=0.97), "int8-per-row"),
        (Allowed(least_cosine=0.997), "int8-weight-only"),
        (Allowed(batch_dependent=True), "int8-dynamic"),
        (Allowed(least_agreement=0.999), "fp32"),
        (Allowed(least_cosine=1.5), None),
    ],
)
def test_the_pick_is_the_fastest_that_is_allowed(allowed, picked):
    chosen = pick(ROWS, allowed)
    assert (chosen.candidate.name if chosen else None) == picked


def test_of_equally_fast_candidates_the_closest_is_picked():
    rows = [row("fp16", 121, accuracy(0.9999)), row("fp32", 120, accuracy())]
    assert pick(rows, Allowed()).candidate.name == "fp32"
    assert pick([row("fp16", 125, accuracy(0.9999)), rows[1]], Allowed()).candidate.name == "fp16"


def test_every_faster_candidate_is_refused_with_its_reason():
    refused = findings(allowed=Allowed(least_agreement=0.97)).refused
    reasons = {row.candidate.name: reason for row, reason in refused}
    assert list(reasons) == ["int8-dynamic", "int8-static"]
    assert "answers depend on the batch" in reasons["int8-dynamic"]
    assert "--allow-batch-dependent" in reasons["int8-dynamic"]
    assert reasons["int8-static"] == "agreement 0.840, below the required 0.97"
    assert refusals(ROWS[7], Allowed()) == [
        "a graph optimisation level, not a candidate of its own"
    ]
    assert "outside its tolerance: parity: lowest cosine" in refusals(ROWS[8], Allowed())
    broken = row(
        "int8-weight-only",
        500,
        accuracy(failed=["parity: lowest cosine: 0.2 (must be at least 0.9)"]),
    )
    assert refusals(broken, Allowed())[0].startswith("outside its tolerance: parity: lowest cosine")


def test_the_original_is_never_picked_nor_refused_as_faster():
    rows = [row(ORIGINAL, 900, None), ROWS[1]]
    assert names([pick(rows, Allowed())]) == ["fp32"]
    assert findings(rows).refused == []


def test_the_table_shows_everything():
    text = "\n".join(lines(findings(allowed=Allowed(least_agreement=0.97))))
    assert "* int8-per-row <- pick" in text
    assert "pick: int8-per-row: the fastest within its tolerance" in text
    assert "(2.00 x torch eager at 8 rows)" in text
    assert "int8-dynamic is faster, but refused" in text
    table = [line.split()[0:2] for line in text.splitlines() if "int8-dynamic" in line]
    assert table[0] == ["*", "int8-dynamic"], "sorted by throughput, marked as on the front"


def test_what_was_not_measured_is_reported_once_for_each_reason():
    reason = "not measured: the time budget ended first"
    left_out = [
        Row(Candidate(precision), reason=reason)
        for precision in ("int8-weight-only", "int8-static")
    ]
    text = "\n".join(lines(findings([*ROWS[:2], *left_out])))
    assert "  int8-weight-only, int8-static: not measured: the time budget ended first" in text
    assert findings([*ROWS[:2], *left_out]).to_dict()["not_measured"].keys() == {
        "int8-weight-only",
        "int8-static",
    }


def test_a_level_that_is_clearly_faster_says_what_to_write():
    rows = [ROWS[1], row("fp32", 150, accuracy(), "extended")]
    assert "optimization { graph { level: 1 } } in mini_onnx" in findings(rows).level_hint()
    assert findings([ROWS[1], row("fp32", 121, accuracy(), "extended")]).level_hint() == ""


def test_the_json_has_every_figure(tmp_path):
    path = findings().save(tmp_path)
    document = json.loads(path.read_text())
    assert document["pick"] == "int8-static"
    assert document["machine"] == {"cores": 2}
    assert set(document["versions"]) >= {"onnxruntime", "torch"}
    candidates = {candidate["name"]: candidate for candidate in document["candidates"]}
    assert candidates["int8-weight-only"]["times"]["rows8_threads1"]["rows_s"] == 140
    assert candidates["int8-weight-only"]["accuracy"]["closeness"]["agreement"] == 0.98
    assert Accuracy.from_dict(candidates["int8-weight-only"]["accuracy"]) == ROWS[3].accuracy


def test_the_chart_is_a_real_image_of_the_points(tmp_path):
    from PIL import Image

    measured = findings(allowed=Allowed(least_agreement=0.97))
    assert [path.name for path in draw(measured, tmp_path)] == list(CHART_FILES)
    with Image.open(tmp_path / "optimize.png") as image:
        assert image.format == "PNG"
        assert min(image.size) >= 600
        assert len(image.convert("RGB").getcolors(1 << 24)) > 20, "something is drawn"
    svg = ElementTree.fromstring((tmp_path / "optimize.svg").read_text())  # noqa: S314 - our own
    assert svg.tag == "{http://www.w3.org/2000/svg}svg"
    texts = {
        "".join(text.itertext()).strip() for text in svg.iter("{http://www.w3.org/2000/svg}text")
    }
    positions = {row.candidate.name: (x, y) for row, x, y in points(measured)}
    assert set(positions) <= texts
    assert positions["int8-weight-only"] == (140, pytest.approx(0.0005))
    assert positions["fp32"][1] > 0, "a logarithmic axis can show an exact candidate"
    ids = {group.get("id") for group in svg.iter("{http://www.w3.org/2000/svg}g")}
    assert "front" in ids
    first = (tmp_path / "optimize.svg").read_bytes()
    draw(measured, tmp_path)
    assert (tmp_path / "optimize.svg").read_bytes() == first


def test_candidates():
    names = [candidate.name for candidate in candidates(["fp32", "int8-weight-only"])]
    assert names == ["fp32", "int8-weight-only", "fp32@disable", "fp32@basic", "fp32@extended"]
    assert len(candidates(["fp32"])) == 4


def test_a_precision_that_promises_nothing_is_measured_anyway():
    class OwnLimits(Doubling):
        def tolerance(self, precision):
            return replace(tolerance("embedding", precision), mean=0.5)

    task = OwnLimits(ConversionRequest("doubling", "doubling.bin"))
    assert measured_tolerance(task, "int8-dynamic").invariance == 2e-3
    assert measured_tolerance(task, "int8-weight-only").invariance == 1e-4
    assert measured_tolerance(task, "int8-dynamic").mean == 0.5


def test_a_budget_ends():
    now = [0.0]
    budget = Budget(10, lambda: now[0])
    now[0] = 7
    assert budget.allows()
    assert not budget.allows(0.6)
    now[0] = 10
    assert not budget.allows()
    assert budget.left == 0


def test_what_would_not_end_in_time_is_not_started():
    """A budget of 4 minutes took 5 min 14 s: what started just before the end ran on after it."""
    now = [0.0]
    budget = Budget(240, lambda: now[0])
    now[0] = 200
    assert budget.has_room(40)
    assert not budget.has_room(41)
    assert not budget.has_room(0, 0.6)


def test_the_most_promising_are_measured_first():
    precisions = ["fp32", "fp16", "int8-weight-only", "int8-static", "int8-per-row"]
    ordered = [candidate.name for candidate in candidates(precisions)]
    assert ordered[:5] == ["fp32", "int8-per-row", "int8-static", "int8-weight-only", "fp16"]
    assert all("@" in name for name in ordered[5:])


def test_a_pass_that_would_exceed_the_budget_is_not_started(timer):
    now = [0.0]

    class Slow(FakeProcess):
        def visit(self, cell):
            now[0] += 10
            return super().visit(cell)

    timing.BenchmarkProcess = Slow  # the fixture restores it
    run(timer("original", "int8-weight-only"), Budget(100, lambda: now[0]))
    assert now[0] <= 100
    assert now[0] >= 80


class FakeProcess:
    """Takes no time; ``speeds`` are rows/s by the candidate's name, "broken" cannot be loaded."""

    speeds: ClassVar = {"original": 100.0, "int8-weight-only": 150.0, "int8-static": 300.0}
    visited: ClassVar[list[str]] = []
    stopped = 0
    stop_after = 10**9

    def __init__(self, spec):
        self.name, self.memory_bytes = spec["name"], 7_000_000

    def start(self, folder):
        if self.name == "broken":
            raise ConversionError("it cannot be run on this machine: no kernel")

    def visit(self, cell):
        if len(FakeProcess.visited) >= FakeProcess.stop_after:
            raise KeyboardInterrupt
        FakeProcess.visited.append(self.name)
        noise = 1 + 0.5 * (len(FakeProcess.visited) % 3)
        return Times(self.speeds[self.name] * noise, 1.0, 2.0)

    def stop(self):
        FakeProcess.stopped += 1


@pytest.fixture
def timer(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "BenchmarkProcess", FakeProcess)
    monkeypatch.setattr(FakeProcess, "visited", [])
    monkeypatch.setattr(FakeProcess, "stopped", 0)
    monkeypatch.setattr(FakeProcess, "stop_after", 10**9)

    def make(*names, cache="cache", content="") -> Timer:
        timed = [
            TimedCandidate(
                Candidate(ORIGINAL if name == "original" else name), {"name": name}, [name, content]
            )
            for name in names
        ]
        return Timer(
            timed, MeasurementCache(tmp_path / cache, "this machine"), tmp_path, lambda text: None
        )

    return make


def run(timer: Timer, budget: Budget, passes: int = 0) -> dict[Candidate, Timings]:
    with timer:
        return timer.run(budget, passes)


def test_candidates_are_visited_in_turn_and_forwards_and_backwards(timer):
    run(timer("original", "int8-weight-only", "int8-static"), Budget(1e9), passes=2)
    per_pass = len(FakeProcess.visited) // 2
    # ``original`` is the baseline: each cell begins with it.
    assert FakeProcess.visited[:3] == ["original", "int8-weight-only", "int8-static"]
    assert FakeProcess.visited[per_pass : per_pass + 3] == [
        "original",
        "int8-static",
        "int8-weight-only",
    ]
    assert per_pass == 3 * len(CELLS)
    assert FakeProcess.stopped == 3


def test_an_interrupted_run_continues_where_it_stopped(timer):
    FakeProcess.stop_after = 3 * len(CELLS) + 4
    with pytest.raises(KeyboardInterrupt):
        run(timer("original", "int8-weight-only", "int8-static"), Budget(1e9))
    assert FakeProcess.stopped == 3
    FakeProcess.visited, FakeProcess.stop_after = [], 10**9
    done = run(timer("original", "int8-weight-only", "int8-static"), Budget(1e9))
    assert {timings.passes for timings in done.values()} == {PASSES}
    # One pass and one whole cell were cached; of the interrupted cell, only the baseline.
    assert len(FakeProcess.visited) <= 3 * len(CELLS) * (PASSES - 1)
    FakeProcess.visited = []
    again = run(timer("original", "int8-weight-only", "int8-static"), Budget(1e9))
    assert FakeProcess.visited == []
    assert again == done


def test_another_graph_is_measured_again(timer):
    run(timer("original", "int8-weight-only"), Budget(1e9), passes=1)
    FakeProcess.visited = []
    run(timer("original", "int8-weight-only", content="another"), Budget(1e9), passes=1)
    assert FakeProcess.visited


def test_a_candidate_that_cannot_run_is_left_out_and_says_why(timer):
    done = run(timer("original", "broken", "int8-weight-only"), Budget(1e9), passes=2)
    assert "no kernel" in done[Candidate("broken")].reason
    assert done[Candidate("broken")].passes == 0
    assert done[Candidate("int8-weight-only")].passes == 2


def test_a_budget_that_ends_keeps_what_was_measured(timer):
    remaining = [5]

    class Few(Budget):
        def has_room(self, seconds, share=1.0):
            remaining[0] -= 1
            return remaining[0] >= 0

    done = run(timer("original", "int8-weight-only"), Few(1e9))
    assert len(done[Candidate("int8-weight-only")].pairs) == 5
    assert done[Candidate("int8-weight-only")].passes == 1, "the headline comes first"
    nothing = run(timer("original", "int8-weight-only", cache="other"), Budget(-1.0))
    assert nothing[Candidate("int8-weight-only")].times() == {}


def test_ratios_are_of_the_same_visit():
    timings = Timings()
    for turn, load in enumerate((1.0, 0.1, 0.5)):
        timings.add(turn, HEADLINE, Times(300 * load, 1, 2), Times(100 * load, 1, 2))
    assert timings.ratios() == {HEADLINE.name: pytest.approx(3.0)}
    assert timings.times()[HEADLINE.name].rows_s == 150


def test_measurements_are_cached_by_content(tmp_path):
    cache = MeasurementCache(tmp_path, "one")
    key = cache.key("accuracy", "abc")
    assert cache.once(key, lambda: {"a": 1}) == {"a": 1}
    assert cache.once(key, lambda: pytest.fail("measured twice")) == {"a": 1}
    elsewhere = MeasurementCache(tmp_path, "other machine")
    assert elsewhere.get(elsewhere.key("accuracy", "abc")) is None
    (tmp_path / f"{key}.json").write_text("{half")
    assert cache.get(key) is None
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


def test_what_takes_longer_than_the_budget_is_stopped():
    """A slow original on a busy machine once ran on for 400 s."""
    with pytest.raises(OutOfTime), Budget(0.2).enforced():
        try:
            subprocess.run([sys.executable, "-c", "import time; time.sleep(600)"], check=False)
        except Exception:  # code that handles any failure must not handle this as one
            pytest.fail("the end of the budget was handled as a failure")
    with Budget(60).enforced():
        pass
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_a_conversion_that_does_not_end_in_time_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(measuring, "convert", lambda *_: time.sleep(60))
    task = SimpleNamespace(offered=lambda: ("fp32",), name="t")
    subject = measuring.Subject(ConversionRequest("mood", "x"), lambda request: task, "t", "o")
    with pytest.raises(ConversionError, match=r"before mood was converted.*a larger --budget"):
        measuring.measure(subject, MeasurementCache(tmp_path, "m"), Budget(0.2), lambda text: None)


def test_a_comparison_that_does_not_end_in_time_is_named_and_the_rest_continues(tmp_path):
    bench = Bench(None, None, None, MeasurementCache(tmp_path, "m"), lambda text: None)
    bench._write = lambda candidate: time.sleep(60)
    bench.screen_all([Candidate("int8-static"), Candidate("int8-weight-only")], Budget(0.2))
    assert set(bench.reasons.values()) == {LEFT_OUT}
    assert len(bench.reasons) == 2


class FakeBench(Bench):
    """Screening takes 8 s, a proof 30 s (of FP32: 2 s), and nothing is written."""

    def __init__(self, now, tmp_path, log):
        cache = MeasurementCache(tmp_path / "bench", "m")
        super().__init__(None, None, None, cache, lambda text: None)
        self.now, self.log, self.failing = now, log, set()

    def _screen(self, candidate):
        self.now[0] += 8
        self.log.append(f"screen {candidate.name}")
        self.engines[candidate.precision] = Path(__file__)
        self.accuracies[candidate.precision] = replace(accuracy(0.99), proved=False)

    def _prove(self, candidate):
        self.now[0] += 2 if candidate.precision == "fp32" else 30
        self.log.append(f"prove {candidate.name}")
        failed = ["parity: lowest cosine"] if candidate.precision in self.failing else []
        invariant = candidate.precision != "int8-dynamic"
        self.accuracies[candidate.precision] = accuracy(0.995, failed=failed, invariant=invariant)


EIGHT_BIT = ("int8-per-row", "int8-static", "int8-weight-only", "int8-dynamic")
SPEEDS = {
    "original": 100.0,
    "fp32": 120.0,
    "fp16": 100.0,
    "int8-static": 300.0,
    "int8-per-row": 200.0,
    "int8-weight-only": 150.0,
    "int8-dynamic": 310.0,
}


@pytest.fixture
def optimized(tmp_path, timer, monkeypatch):
    """Choose within so many seconds of a fake clock: the rows by name, and what was done."""

    def choose(seconds, hard_s=None, failing=()):
        now, log = [0.0], []

        class Process(FakeProcess):
            speeds: ClassVar = SPEEDS

            def visit(self, cell):
                now[0] += 0.5
                if cell == HEADLINE and f"time {self.name}" not in log:
                    log.append(f"time {self.name}")
                return Times(self.speeds[self.name.partition("@")[0]], 1.0, 2.0)

        monkeypatch.setattr(timing, "BenchmarkProcess", Process)
        budget = Budget(seconds, lambda: now[0], hard_s)
        bench = FakeBench(now, tmp_path, log)
        bench.failing = set(failing)
        choices = candidates(["fp32", "fp16", *EIGHT_BIT])
        bench.screen_all(choices, budget)
        timed = [candidate for candidate in choices if candidate.precision in bench.accuracies]
        specs = [
            TimedCandidate(candidate, {"name": candidate.name}, [candidate.name])
            for candidate in [Candidate(ORIGINAL), *timed]
        ]
        cache = MeasurementCache(tmp_path / "times", "m")
        with Timer(specs, cache, tmp_path, lambda text: None) as clock:
            timings = time_and_prove(bench, clock, choices, ANY, budget)
        assert now[0] <= budget.seconds + 30, "at most one proof ends late; a real one is stopped"
        return {c.name: bench.row(c, timings.get(c, Timings())) for c in choices}, log, budget

    return choose


def test_the_fastest_are_proved_before_slower_ones_and_graph_levels(optimized):
    rows, log, _ = optimized(1000)
    assert all(row.measured and not row.reason for row in rows.values())
    assert pick(list(rows.values()), ANY).candidate.name == "int8-static"
    proofs = [line for line in log if line.startswith("prove")]
    assert proofs[:2] == ["prove fp32", "prove int8-static"]
    assert log.index("prove int8-static") < log.index("time fp32@disable")
    assert log.index("time int8-per-row") < log.index("prove int8-static")


def test_a_small_budget_measures_8_bit_candidates_and_picks_the_best(optimized):
    """96 s were once spent on FP32: its comparison took so long that no other one was started."""
    rows, log, _ = optimized(96)
    assert pick(list(rows.values()), ANY).candidate.name == "int8-static"
    screened = [line for line in log if line.startswith("screen int8")]
    assert screened[:2] == ["screen int8-per-row", "screen int8-static"]
    left_out = {name: row.reason for name, row in rows.items() if not row.measured}
    assert left_out and all("(--budget)" in reason for reason in left_out.values())


def test_more_of_the_time_is_taken_for_the_proofs_than_leaves_only_fp32(optimized):
    """All were timed, and the budget then ended before any of the fast ones was proved."""
    rows, _, budget = optimized(80, hard_s=230)
    assert budget.seconds == pytest.approx(184)
    proved = [name for name, row in rows.items() if row.measured and name.startswith("int8")]
    assert len(proved) >= 2
    assert pick(list(rows.values()), ANY).candidate.name == "int8-static"


def test_a_refused_favourite_is_followed_by_the_next(optimized):
    rows, log, _ = optimized(200, failing=["int8-static"])
    assert pick(list(rows.values()), ANY).candidate.name == "int8-per-row"
    proofs = [line for line in log if line.startswith("prove")]
    assert proofs[:3] == ["prove fp32", "prove int8-static", "prove int8-per-row"]


def test_with_nothing_to_choose_from_the_model_takes_more_of_the_time(optimized):
    rows, _, budget = optimized(30, hard_s=150)
    assert budget.seconds == 120
    assert pick(list(rows.values()), ANY).candidate.name == "int8-static"

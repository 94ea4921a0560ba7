"""``tidegate optimize``'s arithmetic on made-up figures: front, pick, reasons, budget, resume."""

import json
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import pytest

from converters.closeness import Closeness
from converters.errors import ConversionError
from converters.optimize import timing
from converters.optimize.accuracy import Accuracy, measured_tolerance
from converters.optimize.budget import Budget, OutOfTime
from converters.optimize.candidates import ORIGINAL, Candidate, candidates
from converters.optimize.chart import CHART_FILES, draw, points
from converters.optimize.clocks import CELLS, Times
from converters.optimize.findings import Findings
from converters.optimize.kept import Kept
from converters.optimize.pareto import HEADLINE, Allowed, Row, front, pick, refusals
from converters.optimize.table import lines
from converters.optimize.timing import PASSES, Form, Timer, Visits
from converters.task import ConversionRequest

GRADES = {True: "answers do not depend on the batch", False: "answers depend on the batch"}


def accuracy(mean_cosine=1.0, cosine=None, agreement=1.0, failed=(), invariant=True) -> Accuracy:
    lowest = mean_cosine if cosine is None else cosine
    near = Closeness(0.01, 0.005, lowest, mean_cosine, agreement)
    return Accuracy(near, 1500, tuple(failed), invariant, GRADES[invariant])


def row(precision, speed, near: Accuracy | None, level="all", pruned=False) -> Row:
    times = {cell.name: Times(speed * cell.rows / 8, 1.0, 2.0) for cell in CELLS}
    ratios = {cell.name: speed / 100 for cell in CELLS}
    form = Candidate(precision, level, pruned)
    return Row(form, near, times, ratios, 3, size_mb=90.0, memory_mb=120.0)


ROWS = (
    row(ORIGINAL, 100, None),
    row("fp32", 120, accuracy()),
    row("fp16", 110, accuracy(0.99999)),
    row("w8", 140, accuracy(0.9995, 0.9974, 0.98)),
    row("int8", 250, accuracy(0.98, 0.95, 0.84)),
    row("int8-rows", 200, accuracy(0.9994, 0.995, 0.985)),
    row("int8-dynamic", 260, accuracy(0.99, 0.955, 0.88, invariant=False)),
    row("fp32", 130, accuracy(), "basic"),
    row("fp32", 180, accuracy(0.8, failed=["parity: lowest cosine"]), pruned=True),
)


def names(rows) -> list[str]:
    return [each.candidate.name for each in rows]


ANY = Allowed()


def findings(rows=ROWS, allowed=ANY) -> Findings:
    return Findings("mini", "embedding", tuple(rows), 1500, allowed, "torch eager", {"cores": 2})


def test_the_front_is_what_nothing_beats_in_both():
    assert names(front(ROWS)) == ["int8-dynamic", "int8-rows", "w8", "fp32@basic"]
    duplicate = replace(ROWS[5], candidate=Candidate("w8", pruned=True))
    assert len(front([ROWS[5], duplicate])) == 1, "a tie is one point"
    assert front([row(ORIGINAL, 100, None), Row(Candidate("w8"), why_not="ended")]) == []


@pytest.mark.parametrize(
    ("allowed", "picked"),
    [
        (Allowed(), "int8"),
        (Allowed(least_agreement=0.97), "int8-rows"),
        (Allowed(least_cosine=0.997), "w8"),
        (Allowed(batch_dependent=True), "int8-dynamic"),
        (Allowed(accuracy_cost=True, least_agreement=0.999), "fp32-pruned"),
        (Allowed(least_cosine=1.5), None),
    ],
)
def test_the_pick_is_the_fastest_that_is_allowed(allowed, picked):
    chosen = pick(ROWS, allowed)
    assert (chosen.candidate.name if chosen else None) == picked


def test_of_forms_as_fast_the_closest_is_picked():
    rows = [row("fp16", 121, accuracy(0.9999)), row("fp32", 120, accuracy())]
    assert pick(rows, Allowed()).candidate.name == "fp32"
    assert pick([row("fp16", 125, accuracy(0.9999)), rows[1]], Allowed()).candidate.name == "fp16"


def test_every_faster_form_is_refused_with_its_reason():
    found = findings(allowed=Allowed(least_agreement=0.97))
    said = {each.candidate.name: why for each, why in found.refused}
    assert list(said) == ["int8-dynamic", "int8"]
    assert "answers depend on the batch" in said["int8-dynamic"]
    assert "--allow-batch-dependent" in said["int8-dynamic"]
    assert said["int8"] == "agreement 0.840, below the 0.97 asked for"
    pruned, level = refusals(ROWS[8], Allowed()), refusals(ROWS[7], Allowed())
    assert any("--accept-accuracy-cost" in why for why in pruned)
    assert level == ["a graph optimisation level, not a form of its own"]
    broken = row("w8", 500, accuracy(failed=["parity: lowest cosine: 0.2 (must be at least 0.9)"]))
    assert refusals(broken, Allowed())[0].startswith("outside its tolerance: parity: lowest cosine")


def test_the_original_is_never_picked_nor_refused_as_faster():
    rows = [row(ORIGINAL, 900, None), ROWS[1]]
    assert names([pick(rows, Allowed())]) == ["fp32"]
    assert findings(rows).refused == []


def test_the_table_says_all_of_it():
    text = "\n".join(lines(findings(allowed=Allowed(least_agreement=0.97))))
    assert "* int8-rows <- pick" in text
    assert "pick: int8-rows: the fastest within its tolerance" in text
    assert "(2.00 x torch eager at 8 rows)" in text
    assert "int8-dynamic is faster, but refused" in text
    table = [line.split()[0:2] for line in text.splitlines() if "int8-dynamic" in line]
    assert table[0] == ["*", "int8-dynamic"], "sorted by throughput, marked as on the front"


def test_what_was_not_measured_is_said_once_for_each_reason():
    left = [Row(Candidate(each), why_not="not measured: the time budget ended first")
            for each in ("w8", "int8")]  # fmt: skip
    text = "\n".join(lines(findings([*ROWS[:2], *left])))
    assert "  w8, int8: not measured: the time budget ended first" in text
    assert findings([*ROWS[:2], *left]).to_dict()["not_measured"].keys() == {"w8", "int8"}


def test_a_level_that_is_clearly_faster_says_what_to_write():
    rows = [ROWS[1], row("fp32", 150, accuracy(), "extended")]
    assert "optimization { graph { level: 1 } } in mini_onnx" in findings(rows).level_hint()
    assert findings([ROWS[1], row("fp32", 121, accuracy(), "extended")]).level_hint() == ""


def test_the_json_holds_every_figure(tmp_path):
    path = findings().save(tmp_path)
    document = json.loads(path.read_text())
    assert document["pick"] == "int8"
    assert document["machine"] == {"cores": 2}
    assert set(document["versions"]) >= {"onnxruntime", "torch"}
    forms = {each["name"]: each for each in document["forms"]}
    assert forms["w8"]["times"]["rows8_threads1"]["rows_s"] == 140
    assert forms["w8"]["accuracy"]["closeness"]["agreement"] == 0.98
    assert Accuracy.from_dict(forms["w8"]["accuracy"]) == ROWS[3].accuracy


def test_the_chart_is_a_real_image_of_the_points(tmp_path):
    from PIL import Image

    found = findings(allowed=Allowed(least_agreement=0.97))
    assert [path.name for path in draw(found, tmp_path)] == list(CHART_FILES)
    with Image.open(tmp_path / "optimize.png") as image:
        assert image.format == "PNG"
        assert min(image.size) >= 600
        assert len(image.convert("RGB").getcolors(1 << 24)) > 20, "something is drawn"
    svg = ElementTree.fromstring((tmp_path / "optimize.svg").read_text())  # noqa: S314 - our own
    assert svg.tag == "{http://www.w3.org/2000/svg}svg"
    texts = {
        "".join(each.itertext()).strip() for each in svg.iter("{http://www.w3.org/2000/svg}text")
    }
    assert {each.candidate.name for each, _, _ in points(found)} <= texts
    paths = {each.candidate.name: (x, y) for each, x, y in points(found)}
    assert paths["w8"] == (140, pytest.approx(0.0005))
    assert paths["fp32"][1] > 0, "exact has a place on a logarithmic axis"
    ids = {each.get("id") for each in svg.iter("{http://www.w3.org/2000/svg}g")}
    assert "front" in ids
    first = (tmp_path / "optimize.svg").read_bytes()
    draw(found, tmp_path)
    assert (tmp_path / "optimize.svg").read_bytes() == first


def test_candidates():
    listed = [each.name for each in candidates(["fp32", "w8"], pruning=True)]
    assert listed == [
        *("fp32", "w8", "fp32@disable", "fp32@basic", "fp32@extended"),
        *("fp32-pruned", "w8-pruned"),
    ]
    assert len(candidates(["fp32"], pruning=False)) == 4


def test_a_precision_that_promises_nothing_is_measured_all_the_same():
    assert measured_tolerance("embedding", "int8-dynamic").invariance == 2e-3
    assert measured_tolerance("embedding", "w8").invariance == 1e-4


def test_a_budget_ends():
    now = [0.0]
    budget = Budget(10, lambda: now[0])
    now[0] = 7
    assert budget.allows()
    assert not budget.allows(0.6)
    now[0] = 10
    assert not budget.allows()
    assert budget.left == 0


def test_what_would_not_end_in_time_is_not_begun():
    """4 minutes took 5 min 14 s: what was begun just before the end went on after it."""
    now = [0.0]
    budget = Budget(240, lambda: now[0])
    now[0] = 200
    assert budget.has_room(40)
    assert not budget.has_room(41)
    assert not budget.has_room(0, 0.6)


def test_the_most_promising_are_measured_first():
    order = [each.name for each in candidates(["fp32", "fp16", "w8", "int8", "int8-rows"], False)]
    assert order[:5] == ["fp32", "int8-rows", "int8", "w8", "fp16"]
    assert all("@" in each for each in order[5:])


def test_a_pass_that_would_go_beyond_the_budget_is_not_begun(timer):
    now = [0.0]

    class Slow(FakeClock):
        def visit(self, cell):
            now[0] += 10
            return super().visit(cell)

    timing.Clock = Slow  # the fixture puts it back
    timer("original", "w8").run(Budget(100, lambda: now[0]))
    assert now[0] <= 100
    assert now[0] >= 80


class FakeClock:
    """Takes no time; ``speeds`` are rows/s by the form's name, "broken" cannot be loaded."""

    speeds: ClassVar = {"original": 100.0, "w8": 150.0, "int8": 300.0}
    visited: ClassVar[list[str]] = []
    stopped = 0
    stop_after = 10**9

    def __init__(self, spec):
        self.name, self.memory_bytes = spec["name"], 7_000_000

    def start(self, folder):
        if self.name == "broken":
            raise ConversionError("it cannot be run on this machine: no kernel")

    def visit(self, cell):
        if len(FakeClock.visited) >= FakeClock.stop_after:
            raise KeyboardInterrupt
        FakeClock.visited.append(self.name)
        noise = 1 + 0.5 * (len(FakeClock.visited) % 3)
        return Times(self.speeds[self.name] * noise, 1.0, 2.0)

    def stop(self):
        FakeClock.stopped += 1


@pytest.fixture
def timer(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "Clock", FakeClock)
    monkeypatch.setattr(FakeClock, "visited", [])
    monkeypatch.setattr(FakeClock, "stopped", 0)
    monkeypatch.setattr(FakeClock, "stop_after", 10**9)

    def made(*forms, kept="kept", content="") -> Timer:
        listed = [
            Form(
                Candidate(ORIGINAL if each == "original" else each), {"name": each}, [each, content]
            )
            for each in forms
        ]
        return Timer(listed, Kept(tmp_path / kept, "this machine"), tmp_path, lambda text: None)

    return made


def test_forms_are_visited_in_turn_and_forwards_and_backwards(timer):
    timer("original", "w8", "int8").run(Budget(1e9), passes=2)
    per_pass = len(FakeClock.visited) // 2
    # ``original`` is what the others are against: each cell begins with it.
    assert FakeClock.visited[:3] == ["original", "w8", "int8"]
    assert FakeClock.visited[per_pass : per_pass + 3] == ["original", "int8", "w8"]
    assert per_pass == 3 * len(CELLS)
    assert FakeClock.stopped == 3


def test_a_run_that_was_stopped_goes_on_where_it_was(timer):
    FakeClock.stop_after = 3 * len(CELLS) + 4
    with pytest.raises(KeyboardInterrupt):
        timer("original", "w8", "int8").run(Budget(1e9))
    assert FakeClock.stopped == 3
    FakeClock.visited, FakeClock.stop_after = [], 10**9
    done = timer("original", "w8", "int8").run(Budget(1e9))
    assert {visits.passes for visits in done.values()} == {PASSES}
    # One pass and one whole cell were kept; of the cell that was cut, what the others are against.
    assert len(FakeClock.visited) <= 3 * len(CELLS) * (PASSES - 1)
    FakeClock.visited = []
    again = timer("original", "w8", "int8").run(Budget(1e9))
    assert FakeClock.visited == []
    assert again == done


def test_another_graph_is_measured_anew(timer):
    timer("original", "w8").run(Budget(1e9), passes=1)
    FakeClock.visited = []
    timer("original", "w8", content="another").run(Budget(1e9), passes=1)
    assert FakeClock.visited


def test_a_form_that_cannot_run_is_left_out_and_says_why(timer):
    done = timer("original", "broken", "w8").run(Budget(1e9), passes=2)
    assert "no kernel" in done[Candidate("broken")].why_not
    assert done[Candidate("broken")].passes == 0
    assert done[Candidate("w8")].passes == 2


def test_a_budget_that_ends_leaves_what_is_there(timer):
    left = [5]

    class Few(Budget):
        def has_room(self, seconds, share=1.0):
            left[0] -= 1
            return left[0] >= 0

    done = timer("original", "w8").run(Few(1e9))
    assert len(done[Candidate("w8")].pairs) == 5
    assert done[Candidate("w8")].passes == 1, "the headline comes first"
    nothing = timer("original", "w8", kept="other").run(Budget(-1.0))
    assert nothing[Candidate("w8")].times() == {}


def test_ratios_are_of_the_same_visit():
    visits = Visits()
    for turn, load in enumerate((1.0, 0.1, 0.5)):
        visits.add(turn, HEADLINE, Times(300 * load, 1, 2), Times(100 * load, 1, 2))
    assert visits.ratios() == {HEADLINE.name: pytest.approx(3.0)}
    assert visits.times()[HEADLINE.name].rows_s == 150


def test_what_is_kept_is_by_content(tmp_path):
    kept = Kept(tmp_path, "one")
    key = kept.key("accuracy", "abc")
    assert kept.once(key, lambda: {"a": 1}) == {"a": 1}
    assert kept.once(key, lambda: pytest.fail("measured twice")) == {"a": 1}
    assert (
        Kept(tmp_path, "other machine").get(Kept(tmp_path, "other machine").key("accuracy", "abc"))
        is None
    )
    (tmp_path / f"{key}.json").write_text("{half")
    assert kept.get(key) is None
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


def test_what_takes_longer_than_the_budget_is_ended_with_it():
    """An original that answers for minutes, on a machine that is busy: it ran on for 400 s."""
    started = time.monotonic()
    with pytest.raises(OutOfTime), Budget(0.2).enforced():
        try:
            subprocess.run([sys.executable, "-c", "import time; time.sleep(60)"], check=False)
        except Exception:  # what takes any failure for an answer must not take this for one
            pytest.fail("the end of the budget was taken for a failure")
    assert time.monotonic() - started < 20
    with Budget(60).enforced():
        pass
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_a_conversion_that_does_not_end_in_time_says_so(monkeypatch, tmp_path):
    from converters.optimize import measuring
    from converters.optimize.kept import Kept

    monkeypatch.setattr(measuring, "convert", lambda *_: time.sleep(60))
    task = SimpleNamespace(precisions=("fp32",), name="t")
    subject = measuring.Subject(ConversionRequest("mood", "x"), lambda order: task, "t")
    with pytest.raises(ConversionError, match=r"before mood was converted.*a larger --budget"):
        measuring.measure(subject, Kept(tmp_path, "m"), Budget(0.2), lambda text: None)


def test_a_comparison_that_does_not_end_in_time_is_named_and_the_others_go_on(tmp_path):
    from converters.optimize.kept import Kept
    from converters.optimize.measuring import LEFT_OUT, Bench

    bench = Bench(None, None, None, Kept(tmp_path, "m"), lambda text: None)
    bench._write = lambda form: time.sleep(60)
    bench.compare_all([Candidate("int8"), Candidate("w8")], Budget(0.2))
    assert set(bench.reasons.values()) == {LEFT_OUT}
    assert len(bench.reasons) == 2

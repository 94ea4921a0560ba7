"""The report of a sign-off: what it says, and how its page looks in a real browser."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

from loadtests.signoff.charts import Line, Mark, chart
from loadtests.signoff.confidence import Outcome
from loadtests.signoff.procedure import PROFILES, Result, sign_off
from loadtests.signoff.report import Circumstances, document, html, markdown, overall, write
from loadtests.signoff.scaling import fit
from loadtests.signoff.slo import Limit, Slo
from loadtests.signoff.steps import Step
from tests.loadtests.signoff.simulated import Server
from tests.running import ROOT

CIRCUMSTANCES = Circumstances(
    "http://127.0.0.1:8080",
    "quick",
    "2026-11-28T06:00:00+00:00",
    300.0,
    {"first": ("1",), "second": ("7",)},
    "[first]\nrate = '50/s' # <script>alert(1)</script>",
)


REPORT = document([], CIRCUMSTANCES, ROOT)


def report_of(*servers):
    results = []
    for name, server in zip(("first", "second"), servers, strict=False):
        limits = (Limit("", 0.5, 0.03), Limit("", 0.99, 0.1))
        result = Result(Slo(name, 50.0, limits, memory_mib_per_min=1.0))
        sign_off(result, PROFILES["quick"], server.load, server.memory, server.steps, 2000.0)
        result.steps = (Step(f"{name}_pre", 0.0001, 0.001), Step(f"{name}_onnx", 0.002, 0.004))
        results.append(result)
    return document(results, CIRCUMSTANCES, ROOT)


@pytest.fixture(scope="module")
def report():
    return report_of(Server(), Server(errors=0.02))


def test_the_verdict_of_the_whole_is_the_worst_of_its_pipelines(report):
    assert [pipeline["verdict"] for pipeline in report["pipelines"]] == ["pass", "fail"]
    assert (report["verdict"], report["signed"]) == ("fail", False)
    assert overall([Outcome.PASS, Outcome.UNDECIDED]) is Outcome.UNDECIDED
    assert overall([]) is Outcome.UNDECIDED
    assert overall([Outcome.PASS]) is Outcome.PASS


def test_its_figures_are_plain_json_and_agree_with_each_other(report):
    assert json.loads(json.dumps(report, allow_nan=False)) == json.loads(json.dumps(report))
    first = report["pipelines"][0]
    at_target, timeline = first["at_the_target"], first["timeline"]
    assert sum(second["requests"] for second in timeline) == at_target["requests"]
    assert at_target["p50_ms"] <= at_target["p99_ms"] <= at_target["p99.9_ms"]
    assert first["objectives"][1]["requests"] == at_target["requests"]
    assert first["knee"]["held_per_s"] < first["knee"]["missed_per_s"]


def test_the_summary_names_the_verdict_the_reason_and_what_to_change(report):
    text = markdown(report)
    assert text.startswith("# Capacity: NOT SIGNED\n")
    assert "## first: SIGNED" in text
    assert "P99, errors missed at 50/s. First: look at the errors below: they come at low" in text
    assert "open loop (arrivals: Poisson)" in text
    assert "commit " in text


def test_replicas_for_the_rate_are_read_from_the_fit_and_a_guess_is_called_one():
    result = Result(Slo("first", 150.0, ()), scaling=fit([1, 2], [50.0, 95.0]))
    (pipeline,) = document([result], CIRCUMSTANCES, ROOT)["pipelines"]
    assert pipeline["scaling"]["replicas_for_the_rate"] == 4
    assert not pipeline["scaling"]["is_extrapolated"]
    assert "Replicas for 150/s: 4 (contention 0.0" in markdown({**REPORT, "pipelines": [pipeline]})
    far = Result(Slo("first", 400.0, ()), scaling=fit([1, 2], [50.0, 95.0]))
    (pipeline,) = document([far], CIRCUMSTANCES, ROOT)["pipelines"]
    assert pipeline["scaling"]["is_extrapolated"]
    assert "a guess" in markdown({**REPORT, "pipelines": [pipeline]})


def test_the_time_of_a_request_is_split_into_gateway_queue_and_compute(report):
    """Without Server-Timing, as in these, what is not of Triton's steps is one part."""
    (first, _) = report["pipelines"]
    times = first["where_the_time_goes_ms"]
    assert list(times) == [
        "waiting to be sent",
        "queue: first_pre",
        "queue: first_onnx",
        "compute: first_pre",
        "compute: first_onnx",
        "gateway, network and the rest",
    ]
    assert times["compute: first_onnx"] == 4.0
    assert not first["where_the_time_goes_note"]
    assert "- compute: first_onnx: 4.00 ms" in markdown(report)


def test_a_target_without_tritons_statistics_says_so(report):
    server = Server()
    result = Result(Slo("first", 50.0, (Limit("", 0.5, 0.03),)))
    sign_off(result, PROFILES["smoke"], server.load, server.memory, server.steps, 0.0)
    own = document([result], CIRCUMSTANCES, ROOT)
    assert "statistics could not be read" in own["pipelines"][0]["where_the_time_goes_note"]
    assert "statistics could not be read" in html(own)


def test_what_was_stopped_early_is_unsigned_and_still_a_report(tmp_path):
    report = document([Result(Slo("first", 50.0, ()))], CIRCUMSTANCES, ROOT)
    paths = write(report, tmp_path / "new")
    assert {path.name for path in paths} == {"report.html", "report.json", "report.md"}
    assert report["verdict"] == "undecided"
    assert "it was stopped before its end" in paths[2].read_text().lower()


def test_a_chart_has_its_points_within_its_frame():
    svg = chart("t", "s", "ms", [Line("a", [(0, 1.0), (10, 100.0)], "a")], [Mark("<m>", 50)])
    points = re.search(r'points="([^"]+)"', svg)[1].split()
    for x, y in (map(float, point.split(",")) for point in points):
        assert 0 <= x <= 640
        assert 0 <= y <= 300
    assert "&lt;m&gt;" in svg
    assert chart("t", "s", "ms", [Line("a", [], "a")]) == ""
    one_value = chart("t", "s", "ms", [Line("a", [(1, 5.0)], "a")], is_log=True)
    assert "nan" not in one_value


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        yield browser
        browser.close()


def test_its_page_fits_a_desk_and_a_phone_light_and_dark(report, tmp_path):
    page_file = tmp_path / "report.html"
    page_file.write_text(html(report), encoding="utf-8")
    asked, said = [], []
    with chromium() as browser:
        for width, scheme in ((1200, "light"), (390, "dark")):
            page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
            page.on("request", lambda request: asked.append(request.url))
            page.on("dialog", lambda dialog: said.append(dialog.message))
            page.on("console", lambda message: said.append(message.text))
            page.goto(page_file.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            background, text = (
                _lightness(page.evaluate(f"getComputedStyle(document.body).{style}"))
                for style in ("backgroundColor", "color")
            )
            assert (background > text) is (scheme == "light")
            assert abs(background - text) > 150  # of 255
            # No text of a chart is cut off.
            for box in page.eval_on_selector_all(
                "svg",
                "all => all.map(s => { const r = s.getBoundingClientRect(); return "
                "[...s.querySelectorAll('text')].map(t => { const b = t.getBoundingClientRect(); "
                "return [b.left - r.left, r.right - b.right, b.top - r.top, r.bottom - b.bottom] "
                "}) })",
            ):
                assert box
                assert min(min(text_box) for text_box in box) >= -2, box
            assert page.locator("svg").count() == 8
            assert page.locator("h1").inner_text() == "Capacity: NOT SIGNED"
            assert "<script>" in page.locator("pre").inner_text()
            # Each part of the time has its place in the bar, and a name in its colour.
            assert page.eval_on_selector_all(
                ".bar",
                "all => all.map(b => [...b.children]"
                ".map(s => getComputedStyle(s).backgroundColor))",
            ) == page.eval_on_selector_all(
                ".parts",
                "all => all.map(p => [...p.querySelectorAll('i')]"
                ".map(i => getComputedStyle(i).backgroundColor))",
            )
            assert page.locator(".bar span").count() == 12
    assert asked == [page_file.as_uri()] * 2  # it loads nothing else
    assert not said


def _lightness(color: str) -> float:
    return sum(map(float, re.findall(r"[\d.]+", color)[:3])) / 3

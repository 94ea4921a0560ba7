"""``python -m loadtests.clients`` with programs that answer as the real ones do, and do not."""

import stat
import sys

import pytest

from loadtests.clients.calls import RUNS, Target, kserve, perf_analyzer

GOOD_LINE = '{"client": "KServe REST", "what": "infer", "fault": ""}'
BAD_LINE = '{"client": "KServe REST", "what": "infer", "fault": "another answer"}'
MEASURED = "Concurrency: 2, throughput: 811.648 infer/sec, latency 2460 usec"


def _program(folder, said: str, code: int):
    """What says so and ends so; it shows its arguments on stderr."""
    path = folder / "program"
    path.write_text(
        f"#!{sys.executable}\nimport sys\nprint({said!r})\n"
        f"print(*sys.argv[1:], file=sys.stderr)\nsys.exit({code})\n"
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def _target(folder, said: str, code: int = 0) -> Target:
    program = _program(folder, said, code)
    return Target("http://127.0.0.1:1", "127.0.0.1:2", "tg_key", program, program)


@pytest.mark.parametrize(
    ("said", "code", "faults"),
    [
        (GOOD_LINE, 0, [""]),
        (f"a warning\n{GOOD_LINE}\n{BAD_LINE}", 0, ["", "another answer"]),
        (GOOD_LINE, 3, ["", "ended with 3: "]),
        ("", 0, ["ended with 0: "]),
    ],
)
def test_kserves_lines(tmp_path, said, code, faults):
    found = [outcome.fault for outcome in kserve(_target(tmp_path, said, code))]
    assert len(found) == len(faults)
    assert all(each.startswith(fault) for each, fault in zip(found, faults, strict=True))
    assert [bool(each) for each in found] == [bool(fault) for fault in faults]


def test_perf_analyzers_figures(tmp_path):
    outcomes = list(perf_analyzer(_target(tmp_path, MEASURED)))
    assert [each.note for each in outcomes] == ["811.648 infer/s"] * len(RUNS)
    assert not any(each.fault for each in outcomes)


@pytest.mark.parametrize(("said", "code"), [(MEASURED, 99), ("nothing measured", 0)])
def test_perf_analyzer_without_figures_has_failed(tmp_path, said, code):
    for outcome in perf_analyzer(_target(tmp_path, said, code)):
        assert outcome.fault.startswith(f"ended with {code}: ")

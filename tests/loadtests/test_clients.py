"""``python -m loadtests.clients`` with programs that print what the real ones do, and what not."""

import stat
import sys

import pytest

from loadtests.clients.calls import RUNS, Stack, kserve, perf_analyzer

GOOD_LINE = '{"client": "KServe REST", "what": "infer", "fault": ""}'
BAD_LINE = '{"client": "KServe REST", "what": "infer", "fault": "wrong response"}'
MEASURED = "Concurrency: 2, throughput: 811.648 infer/sec, latency 2460 usec"


def _program(folder, output: str, code: int):
    """A program that prints ``output``, exits with ``code``, and shows its arguments on stderr."""
    path = folder / "program"
    path.write_text(
        f"#!{sys.executable}\nimport sys\nprint({output!r})\n"
        f"print(*sys.argv[1:], file=sys.stderr)\nsys.exit({code})\n"
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def _stack(folder, output: str, code: int = 0) -> Stack:
    program = _program(folder, output, code)
    return Stack("http://127.0.0.1:1", "127.0.0.1:2", "tg_key", program, program)


@pytest.mark.parametrize(
    ("output", "code", "faults"),
    [
        (GOOD_LINE, 0, [""]),
        (f"a warning\n{GOOD_LINE}\n{BAD_LINE}", 0, ["", "wrong response"]),
        (GOOD_LINE, 3, ["", "ended with 3: "]),
        ("", 0, ["ended with 0: "]),
    ],
)
def test_each_line_of_kserves_client_is_an_outcome(tmp_path, output, code, faults):
    actual = [outcome.fault for outcome in kserve(_stack(tmp_path, output, code))]
    for fault, expected in zip(actual, faults, strict=True):
        assert fault.startswith(expected)
        assert bool(fault) == bool(expected)


def test_perf_analyzers_throughput_is_noted(tmp_path):
    outcomes = list(perf_analyzer(_stack(tmp_path, MEASURED)))
    assert [outcome.note for outcome in outcomes] == ["811.648 infer/s"] * len(RUNS)
    assert not any(outcome.fault for outcome in outcomes)


@pytest.mark.parametrize(("output", "code"), [(MEASURED, 99), ("nothing measured", 0)])
def test_perf_analyzer_without_figures_fails(tmp_path, output, code):
    for outcome in perf_analyzer(_stack(tmp_path, output, code)):
        assert outcome.fault.startswith(f"ended with {code}: ")

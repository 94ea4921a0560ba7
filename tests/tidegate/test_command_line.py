"""The command line as a whole: completion, the generated reference, tables and progress."""

import re
import subprocess
import sys
import time

import pytest

from converters.precisions.write import PRECISIONS
from tests.running import ROOT, environment
from tidegate.app.progress import PHASE_FILE, noted_phase
from tidegate.app.task_registry import KNOWN, TASKS
from tidegate.cli import VERBS
from tidegate.cli_reference import reference
from tidegate.commands.output import _PlainLines, print_table, progress


@pytest.fixture
def bash(tmp_path):
    """``bash(script)``: what a real bash prints, with ``tidegate`` on its PATH."""
    program = tmp_path / "bin" / "tidegate"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tidegate "$@"\n')
    program.chmod(0o755)
    variables = environment(tmp_path)
    variables["PATH"] = f"{program.parent}:{variables['PATH']}"
    variables["PYTHONPATH"] = str(ROOT)

    def run(script):
        return subprocess.run(
            ["bash", "--norc", "-c", script],
            env=variables,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()

    return run


def test_bash_completes_verbs_flags_and_values(bash):
    script = "source <(tidegate completion bash)\ncomplete -p tidegate\n"
    for words in ("tidegate pu", "tidegate rollback --gr", "tidegate canary mood --per ''"):
        script += f"COMPREPLY=(); COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n"
        script += '_tidegate_completion tidegate; echo "${COMPREPLY[@]}"\n'
    registered, *completed = bash(script)
    assert registered == "complete -o nosort -F _tidegate_completion tidegate"
    assert completed == ["publish", "--grace", "caller request"]


@pytest.mark.parametrize(("shell", "line"), [("zsh", "compdef"), ("fish", "complete --no-files")])
def test_the_other_shells_have_their_script(shell, line):
    run = subprocess.run(
        [sys.executable, "-m", "tidegate", "completion", shell],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert line in run.stdout


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("./nothing", "--name", "mood", "--task", "embedding"), "no ./nothing here"),
        (("text_embedding", "--precision", "fp99"), "choose from fp32"),
        (("chat", "--precision", "fp99"), "q8_0"),
    ],
)
def test_what_cannot_be_converted_is_refused_before_a_framework_is_imported(
    tmp_path, arguments, problem
):
    code = f"""import sys
from tidegate.cli import main
sys.argv = ["tidegate", "convert", *{arguments!r}]
try:
    main()
finally:
    print([name for name in ("torch", "onnx", "transformers") if name in sys.modules])"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
    )
    assert run.returncode and problem in run.stderr, run.stderr
    assert run.stdout == "[]\n"


def test_a_tasks_own_precisions_are_those_that_no_graph_has():
    for registered in (*TASKS.values(), *filter(None, KNOWN.values())):
        assert registered.own_precisions == tuple(
            one for one in registered.precisions() if one not in PRECISIONS
        )


def test_the_reference_is_up_to_date():
    assert (ROOT / "docs" / "cli.md").read_text() == reference(), "run make docs"


def test_the_reference_has_every_verb_and_its_flags():
    page = reference()
    headings = re.findall(r"^## tidegate (\w+)$", page, re.MULTILINE)
    assert headings == list(VERBS)
    assert "### tidegate keys rotate" in page
    assert "| `--task [embedding\\|text-classification\\|" in page


def test_progress_in_a_pipe_is_plain_lines(capsys):
    with progress() as report:
        report("one [step]")
        report("two")
    lines = capsys.readouterr().out.splitlines()
    assert [re.sub(r"\d", "0", line) for line in lines] == ["[  0.0 s] one [step]", "[  0.0 s] two"]


def test_a_long_step_is_repeated_with_its_age(capsys):
    lines = _PlainLines(time.monotonic(), err=False, repeat_s=0.02)
    lines.report("proving")
    shown: list[str] = []
    deadline = time.monotonic() + 30
    while len(shown) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
        shown += re.findall(r"proving \(for \d+ s now\)", capsys.readouterr().out)
    lines.close()
    assert len(shown) >= 2
    capsys.readouterr()
    time.sleep(0.1)
    assert capsys.readouterr().out == ""


def test_a_step_is_noted_for_the_process_that_waits(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(PHASE_FILE, str(tmp_path / "phase"))
    assert noted_phase(tmp_path / "phase") == ""
    with progress() as report:
        report("proving the graph")
        assert noted_phase(tmp_path / "phase") == "proving the graph"


def test_progress_on_a_terminal_leaves_the_same_lines():
    """A pseudo-terminal: what stays on the screen are the steps, each once."""
    code = (
        "from tidegate.commands.output import progress\n"
        "with progress() as report:\n    report('one [step]')\n    report('two')\n"
    )
    run = subprocess.run(
        ["script", "-qec", f'"{sys.executable}" -c "{code}"', "/dev/null"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    permanent = re.findall(r"\[  \d\.\d s\] (one \[step\]|two)\r?\n", run.stdout)
    assert permanent == ["one [step]", "two"]


def test_a_table_in_a_pipe_is_neither_wrapped_nor_coloured(capsys):
    long = "x" * 300
    print_table(("name", "what"), [("a", "\x1b[31mred\x1b[0m"), ("bb", long)])
    assert capsys.readouterr().out.splitlines() == [
        "name  what",
        "a     red",
        f"bb    {long}",
    ]

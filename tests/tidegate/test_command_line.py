"""The command line as a whole: completion, the generated reference, tables and progress."""

import re
import subprocess
import sys

import pytest

from tests.running import ROOT, environment
from tidegate.cli import VERBS
from tidegate.cli_reference import reference
from tidegate.commands.output import print_table, progress


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

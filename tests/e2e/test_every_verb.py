"""Rules for every verb: ``--json`` and ``--repository``, one document, the same exit codes, nothing
left in the temporary folder."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import click
import pytest

from serving.triton.ports import Ports
from tests.running import environment, wait_until
from tests.serving.small_pipeline import NAME, publish_staged, stage
from tidegate import cli
from tidegate.app.claim import Running
from tidegate.app.paths import Paths
from tidegate.app.stack import Stack, StackOptions
from tidegate.app.status import Report
from tidegate.commands.exit_code import ExitCode


def _leaves(command, path=()):
    if not isinstance(command, click.Group):
        return {" ".join(path): command}
    context = click.Context(command)
    leaves = {}
    for name in command.list_commands(context):
        leaves |= _leaves(command.get_command(context, name), (*path, name))
    return leaves


VERBS = _leaves(cli.cli)
DONE, FAILED, WRONG_USAGE, NOTHING, STOPPED = ExitCode
# Each verb in an empty home: no repository, no stack, no key. It says what is missing, or finds
# nothing wrong.
NOWHERE = {
    "up": (["nobody"], FAILED),
    "status": ([], NOTHING),
    "top": (["--url", "http://127.0.0.1:1"], FAILED),
    "restart": ([], NOTHING),
    "convert": (["./nothing.onnx", "--name", "m"], FAILED),
    "kb build": (["./nothing.csv"], FAILED),
    "prove": (["m", "--against", "./nothing"], FAILED),
    "publish": (["m"], FAILED),
    "rollback": (["m"], FAILED),
    "versions": (["m"], FAILED),
    "prune": (["m"], FAILED),
    "canary": (["m", "--weight", "10"], FAILED),
    "promote": (["m"], FAILED),
    "shadow": (["m", "--percent", "10"], FAILED),
    "lint": ([], FAILED),
    "optimize": (["m"], WRONG_USAGE),  # its original is missing
    "train": (["nobody"], WRONG_USAGE),
    "compose": (["nobody"], WRONG_USAGE),
    "keys create": (["a"], DONE),
    "keys list": ([], DONE),
    "keys rotate": (["b"], FAILED),
    "keys revoke": (["b"], FAILED),
    "audit verify": ([], FAILED),
    "demo": (["--url", "http://127.0.0.1:1"], FAILED),
    "chat": (["hello", "--url", "http://127.0.0.1:1"], FAILED),
}
# They have nothing of a repository: one prints a shell's script, one reads two reports.
NO_REPOSITORY = {"completion", "signoff compare"}


@pytest.fixture
def call(tmp_path, monkeypatch, capfd):
    """``call("status --json")`` runs in an empty home and returns the exit code, stdout and stderr.
    No call may leave anything in the temporary folder."""
    home, scratch = tmp_path / "home", tmp_path / "scratch"
    for folder in (home, scratch):
        folder.mkdir()
    for name in list(os.environ):
        if name.startswith("TIDEGATE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TIDEGATE_HOME", str(home))
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.chdir(home)

    def called(*words):
        monkeypatch.setattr(sys, "argv", ["tidegate", *words])
        before = _ours()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert _ours() == before
        assert list(scratch.iterdir()) == []
        written = capfd.readouterr()
        return ended.value.code or 0, written.out, written.err

    yield called
    monkeypatch.setattr("tempfile.tempdir", None)


def _ours():
    return {name: value for name, value in os.environ.items() if name.startswith("TIDEGATE_")}


def test_the_list_of_verbs_is_complete():
    assert set(NOWHERE) | NO_REPOSITORY == set(VERBS)


@pytest.mark.parametrize("verb", NOWHERE)
def test_every_verb_takes_json_and_a_repository(verb):
    options = {flag for param in VERBS[verb].params for flag in param.opts}
    assert {"--json", "--repository"} <= options


@pytest.mark.parametrize("verb", VERBS)
def test_a_wrong_command_line_is_2_and_writes_no_document(call, verb):
    code, out, err = call(*verb.split(), "--no-such-flag", "--json")
    assert (code, out) == (WRONG_USAGE, "")
    assert "No such option" in err


@pytest.mark.parametrize("verb", NOWHERE)
def test_in_an_empty_home(call, verb):
    arguments, expected = NOWHERE[verb]
    code, out, err = call(*verb.split(), *arguments, "--json")
    assert code == expected, out + err
    assert "Traceback" not in err
    assert "This is a bug" not in err
    if out:
        json.loads(out)  # one document and nothing else
    else:
        assert err.splitlines()[-1].startswith(("tidegate: ", "Error: "))


@pytest.mark.parametrize("verb", ["status", "demo", "keys list", "audit verify"])
def test_a_verb_of_a_stack_says_that_nothing_serves_the_repository(call, tmp_path, verb):
    code, out, err = call(*verb.split(), "--json", "--repository", str(tmp_path / "models"))
    assert (code, out) == (NOTHING, "")
    assert f"no stack was found that serves {tmp_path / 'models'}" in err


@pytest.mark.parametrize("address", ["::1:8001", "127.0.0.1", "localhost:0", "no.such.invalid:1"])
@pytest.mark.parametrize("verb", ["publish", "rollback", "versions", "prune", "promote"])
def test_an_invalid_server_address_is_wrong_usage(call, verb, address):
    code, out, err = call(verb, "m", "--server", address)
    assert (code, out) == (WRONG_USAGE, "")
    assert repr(address) in err


def test_keys_that_an_operator_would_regret(call):
    code, _, err = call("keys", "create", "a", "--expires", "5")
    assert code == WRONG_USAGE and "has no unit: write 5s, 5h or 5d" in err
    assert call("keys", "create", "a", "--expires", "5d")[0] == DONE
    code, _, err = call("keys", "create", "a")
    assert code == DONE and "warning: there is a key called 'a' already" in err
    assert call("keys", "rotate", "a", "--overlap", "5")[0] == WRONG_USAGE
    for verb in ("revoke", "rotate"):
        assert call("keys", verb, "nobody")[2].startswith("tidegate: no valid key has")


def test_a_verb_without_its_option_is_refused(call):
    code, _, err = call("canary", "m", "--version", "2")
    assert code == WRONG_USAGE and "--version and --per need --weight" in err


def test_what_the_stack_says_after_its_start_has_the_time(tmp_path):
    lines: list[str] = []
    ports = {"gateway_port": 1, "grpc_port": 2, "admin_port": 3, "triton": Ports(), "workers": 1}
    stack = Stack(StackOptions(Paths(tmp_path), "::1", pipelines=(), **ports), lines.append)
    try:
        stack.report("starting Triton ...")
        stack._is_started = True
        stack.report("Triton has ended")
    finally:
        stack.stop()
    assert lines[0] == "starting Triton ..."
    assert re.fullmatch(r"\d\d:\d\d:\d\d Triton has ended", lines[1])
    assert stack.running().grpc == "[::1]:2"


def test_the_documents_of_the_verbs_that_change_a_repository(call, tmp_path):
    repository = tmp_path / "home" / "model_repository"
    for add in (0, 10, 20):
        publish_staged(stage(repository, add), repository)
    here = {"pipeline": NAME, "repository": str(repository)}
    nobody = {"served_by": [], "no_answer_from": []}

    def done(*words):
        code, out, err = call(*words, "--json")
        assert code == DONE, err
        return json.loads(out)

    assert done("rollback", NAME) == [{**here, "version": 2, **nobody}]
    assert done("publish", NAME) == [{**here, "version": 2, **nobody}]
    tried = {"name": "mood.v3", "version": 3, "percent": 10, "per": "caller"}
    started = done("canary", NAME, "--weight", "10")
    assert started == {**here, "canaries": [tried], "gone": [], **nobody}
    assert done("promote", NAME) == {**here, "version": 3, **nobody, "before": 2}
    done("canary", NAME, "--weight", "10", "--version", "1")
    first = {**tried, "name": "mood.v1", "version": 1}
    assert done("canary", NAME) == {"pipeline": NAME, "canaries": [first]}
    kept = {"mood/1": "it is served as mood.v1, a canary or shadow"}
    assert done("prune", NAME, "--keep", "2")["kept"] == kept
    ended = done("canary", NAME, "--weight", "0")
    assert ended == {**here, "canaries": [], "gone": ["mood.v1"], **nobody}
    pruned = done("prune", NAME, "--keep", "1")
    assert pruned.pop("freed_bytes") > 0
    assert pruned == {
        **here,
        "no_answer_from": [],
        "kept": {},
        "deleted": ["mood/1", "mood/2", "mood_onnx/1", "mood_onnx/2"],
    }
    assert [version["number"] for version in done("versions", NAME)] == [3]
    assert done("lint") == []


def test_an_interrupted_verb_says_so_with_its_own_exit_code(tmp_path):
    """SIGTERM while another publisher holds the repository."""
    repository = tmp_path / "model_repository"
    publish_staged(stage(repository, 0), repository)
    shutil.rmtree(tmp_path / ".model_repository.staging" / "servers", ignore_errors=True)
    code = (
        "import signal; from pathlib import Path; "
        "from serving.repository.model_repository import ModelRepository\n"
        f"with ModelRepository(Path({str(repository)!r})).lock('a test'):\n"
        "    print('held', flush=True); signal.pause()"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        waiting = subprocess.Popen(
            [sys.executable, "-m", "tidegate", "publish", NAME],
            env=environment(tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            _wait_until_it_catches_sigterm(waiting.pid)
            waiting.terminate()
            _, err = waiting.communicate(timeout=60)
        finally:
            waiting.kill()
    finally:
        holder.kill()
        holder.communicate()
    assert (waiting.returncode, err) == (STOPPED, "tidegate: stopped\n")


def _wait_until_it_catches_sigterm(pid):
    """From then on it cannot end before the lock is released, except by the signal."""

    def catches():
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        caught = next(line for line in lines if line.startswith("SigCgt:"))
        return bool(int(caught.split()[1], 16) & 1 << (signal.SIGTERM - 1))

    wait_until(catches, 60, "the publisher's handler of SIGTERM")


def test_a_triton_that_does_not_answer_is_not_reported_as_serving_nothing():
    running = Running(1, "/home", "/models", "http://[::1]:1", "", {"grpc": 1}, 1, ["mood"], [])
    silent = Report(running, triton="does not answer", pipelines={"mood": "ready"})
    assert "  mood: version not known   ready" in silent.lines()
    assert "  mood: version none   ready" in replace(silent, versions={"mood": []}).lines()


def test_the_printed_commands_are_served_and_can_be_pasted(tmp_path):
    """A shell would read the brackets of an IPv6 address as a pattern."""
    ports = {"gateway_port": 1, "grpc_port": 2, "admin_port": 3, "triton": Ports(), "workers": 1}
    options = StackOptions(Paths(tmp_path), "::1", pipelines=("mood",), **ports)
    lines = _startup_banner(options).splitlines()
    tried = [shlex.split(line)[2] for line in lines if line.strip().startswith("curl")]
    assert tried == ["http://[::1]:1/v1/models"]
    assert any("curl -s 'http://[::1]:1/v1/models'" in line for line in lines)
    known = _startup_banner(replace(options, host="127.0.0.1", pipelines=("text_embedding",)))
    assert known.count("curl -s http://127.0.0.1:1/v1/") == 3


def test_each_printed_example_is_of_a_pipeline_that_is_served(tmp_path):
    ports = {"gateway_port": 1, "grpc_port": 2, "admin_port": 3, "triton": Ports(), "workers": 1}
    names = ("smart_reply", "customer_service", "chat")
    options = StackOptions(Paths(tmp_path), "127.0.0.1", pipelines=names, **ports)
    lines = [line for line in _startup_banner(options).splitlines() if " -d " in line]
    examples = [shlex.split(line) for line in lines]
    routes = {next(part for part in example if "/v1/" in part) for example in examples}
    assert {route.partition("/v1/")[2] for route in routes} == {
        "smart_reply",
        "customer_service",
        "chat/completions",
    }
    assert all(json.loads(example[-1]) for example in examples)


def _startup_banner(options):
    stack = Stack(options, print)
    try:
        return stack.startup_banner()
    finally:
        stack.stop()

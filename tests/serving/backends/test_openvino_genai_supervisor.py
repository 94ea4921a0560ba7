"""The openvino_genai backend's supervisor, with a program in the engine's place."""

import sys
import threading
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[3] / "serving" / "backends" / "openvino_genai"))

import lm_supervisor
from lm_jobs import Busy, EngineDied, Question
from lm_supervisor import EngineFailed, Supervisor

# It answers "good", ends at "die", keeps "wait" until it is cancelled, and says nothing at "hang".
PROGRAM = """
import json, sys, time
def say(*message): print(json.dumps(message), flush=True)
say("ready")
for line in sys.stdin:
    kind, number, *values = json.loads(line)
    if kind == "cancel":
        say("fail", number, "Cancelled", "cancelled")
    elif values[0] == "die":
        sys.exit(3)
    elif values[0] == "hang":
        time.sleep(60)
    elif values[0] == "good":
        say("send", number, 1, [["text", 1, "stop", "null", 0.0]], True)
"""


class Asker:
    def __init__(self, prompt: str) -> None:
        self.question = Question(prompt, [], "", True, False, False)
        self.over, self.text, self.error = threading.Event(), "", None
        self.has_left = False

    def send(self, prompt_tokens, pieces, is_last):
        self.text += pieces[0].text
        if is_last:
            self.over.set()

    def fail(self, error):
        self.error = error
        self.over.set()

    def is_cancelled(self):
        return self.has_left


def _start(program: str, log: list[str], restarts: list[int]) -> Supervisor:
    command = [sys.executable, "-c", program]
    supervisor = Supervisor(command, 3, 1.5, lambda _, count: restarts.append(count), log.append)
    supervisor.start()
    supervisor.wait_ready()
    return supervisor


def _ask(supervisor: Supervisor, prompt: str) -> Asker:
    """Asks until it is taken."""
    asker = Asker(prompt)
    for _ in range(600):
        try:
            supervisor.submit(asker)
        except Busy:
            time.sleep(0.05)
        else:
            return asker
    pytest.fail("it was never taken")


@pytest.mark.parametrize(
    ("last_words", "why"), [("die", "exit code 3"), ("hang", "it has not taken a step for")]
)
def test_what_is_under_way_fails_and_the_engine_is_started_again(last_words, why):
    log: list[str] = []
    restarts: list[int] = []
    supervisor = _start(PROGRAM, log, restarts)
    try:
        waiting, last = _ask(supervisor, "wait"), _ask(supervisor, last_words)
        assert waiting.over.wait(30)
        assert last.over.wait(30)
        assert isinstance(waiting.error, EngineDied)
        good = _ask(supervisor, "good")
        assert good.over.wait(30)
        assert (good.text, good.error) == ("text", None)
        assert why in log[0]
        assert restarts == [1]
    finally:
        supervisor.stop()


def test_cancelled_full_and_unloaded():
    supervisor = _start(PROGRAM, [], [])
    leaving, *waiting = (_ask(supervisor, "wait") for _ in range(3))
    with pytest.raises(Busy):
        supervisor.submit(Asker("good"))
    leaving.has_left = True
    assert leaving.over.wait(30)
    supervisor.stop()
    for asker in (leaving, *waiting):
        assert asker.over.is_set()
        assert type(asker.error).__name__ == "Cancelled"


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ('print(\'["refused", "no such file"]\')', "no such file"),
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL"),
    ],
)
def test_a_model_that_cannot_be_loaded_says_why(program, why):
    with pytest.raises(EngineFailed, match=why):
        _start(program, [], [])


def test_an_engine_that_keeps_ending_is_started_ever_more_slowly(monkeypatch):
    monkeypatch.setattr(lm_supervisor, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(lm_supervisor, "LONGEST_PAUSE_S", 0.2)
    log: list[str] = []
    supervisor = _start("print('[\"ready\"]')", log, [])
    for _ in range(600):
        if len(log) >= 4:
            break
        time.sleep(0.05)
    supervisor.stop()
    pauses = [line.rsplit(maxsplit=2)[1] for line in log[:4]]
    assert pauses == ["0.05", "0.1", "0.2", "0.2"]


def test_the_time_to_load_is_no_time_of_service(monkeypatch):
    monkeypatch.setattr(lm_supervisor, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(lm_supervisor, "WELL_S", 0.5)
    log: list[str] = []
    supervisor = _start("import time; time.sleep(0.6); print('[\"ready\"]')", log, [])
    for _ in range(600):
        if len(log) >= 2:
            break
        time.sleep(0.05)
    supervisor.stop()
    assert [line.rsplit(maxsplit=2)[1] for line in log[:2]] == ["0.05", "0.1"]

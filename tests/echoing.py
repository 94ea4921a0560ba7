"""A stack with the echoing language model, and a call to it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.running import ROOT, RunningStack, launch, stop, wait_ready

MODELS = Path(__file__).parent / "models"


def add_models(home: Path) -> None:
    """Add the echo and the identity model to a scratch repository."""
    models = home / "model_repository"
    shutil.copytree(ROOT / "model_repository" / "identity_fp32", models / "identity_fp32")
    (models / "echo_llm" / "1").mkdir(parents=True)
    shutil.copy(MODELS / "echo_llm" / "config.pbtxt", models / "echo_llm")
    shutil.copy(MODELS / "echo_llm" / "model.py", models / "echo_llm" / "1")


@contextmanager
def echoing(home: Path) -> Iterator[RunningStack]:
    add_models(home)
    running = launch(home, "identity_fp32", "echo_llm")
    try:
        wait_ready(running)
        yield running
    finally:
        stop(running)


def say(stack: RunningStack, command: str) -> str:
    """The model's reply to a command, such as ``[cancelled]``."""
    body = {"text_input": command, "exclude_input_in_output": True}
    return stack.post("/v2/models/echo_llm/generate", json=body).json()["text_output"]

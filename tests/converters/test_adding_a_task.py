"""docs/adding-a-task.md, followed to the letter in a copy of the packages."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.running import ROOT, environment

PAGE = ROOT / "docs" / "adding-a-task.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PACKAGES = ("converters", "ensembles", "modelspec", "serving", "tidegate")
TASKS = "TASKS: Mapping[str, RegisteredTask] = {\n"


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCK.findall(PAGE.read_text()) if name == language]


@pytest.fixture
def copy(tmp_path):
    """The packages with the page's files and its one line."""
    folder = tmp_path / "tidegate-copy"
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, folder / package, ignore=ignored)
    for text in blocks("python"):
        title, _, content = text.partition("\n")
        if title.startswith("# "):
            file = folder / title.removeprefix("# ")
            file.parent.mkdir(exist_ok=True)
            file.write_text(content)
        else:
            registry = folder / "tidegate" / "app" / "task_registry.py"
            before = registry.read_text()
            assert before.count(TASKS) == 1 and not content
            registry.write_text(before.replace(TASKS, TASKS + text))
    return folder


def test_a_task_is_one_folder_one_declaration_and_one_line(copy, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (model,) = blocks("json")
    (home / "price.linear").write_text(model)
    (command,) = blocks("sh")
    run = subprocess.run(
        [sys.executable, "-P", "-m", *command.split()],
        env={**environment(home), "PYTHONPATH": os.fspath(copy)},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr + run.stdout
    record = json.loads((home / "model_repository/price_onnx/1/proof.json").read_text())
    assert record["passed"] and record["task"] == "linear"
    graph, served = record["proofs"]
    assert any(check["name"].startswith("self-test") for check in graph["checks"])
    assert served["subject"] == "price: served by Triton" and served["checks"]
    config = (home / "model_repository" / "price" / "config.pbtxt").read_text()
    assert "tidegate.golden" in config and "tidegate.endpoint" in config

"""docs/tutorial.md, executed from its first line to its last, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import ROOT, environment, launch, stop, wait_ready

PAGE = (ROOT / "docs/tutorial.md").read_text()
# What a block's output must contain, by the block's first words.
OUTPUT = {
    "tidegate versions wine\ncat": "* 1",
    "KEY=": '"labels"',
    "curl": '"invalid_request"',
    "python call.py": "class_",
    "tidegate keys create": "my-app",
    "LEAVES=12": "* 2",
    "tidegate canary": "wine",
}


@pytest.mark.timeout(1200)
def test_the_tutorial(tmp_path):
    (tmp_path / ".venv").symlink_to(sys.prefix)
    running, seen, variables = None, set(), ""
    # A file to save, with its name, or a block of commands.
    blocks = re.findall(
        r"`(\w+\.py)`[^`]*?(?:`[^`]+`[^`]*?)?```python\n(.*?)```|```sh\n(.*?)```", PAGE, re.DOTALL
    )
    assert [name for name, _, _ in blocks if name] == ["train.py", "call.py"]
    try:
        for name, content, commands in blocks:
            if name:
                (tmp_path / name).write_text(_adapted(content, running))
            elif commands == "tidegate up wine\n":
                running = launch(tmp_path, "wine")
                wait_ready(running)
            else:
                output = _run(tmp_path, variables + _adapted(commands, running))
                variables += "".join(re.findall(r'^[A-Z]+=".*"\n', commands, re.MULTILINE))
                for first_words, expected in OUTPUT.items():
                    if commands.startswith(first_words):
                        seen.add(first_words)
                        assert expected in output, commands + output
    finally:
        if running:
            assert stop(running) == 0, running.output
    assert seen == set(OUTPUT)


def _adapted(text: str, running) -> str:
    """The page's text on this run's ports."""
    if running is None:
        return text
    ports = {"8080": running.gateway_port, "8081": running.grpc_api_port}
    return re.sub(r"(?<=127\.0\.0\.1:)(808\d)", lambda match: str(ports[match[1]]), text)


def _run(home: Path, commands: str) -> str:
    """Run a block as a shell with the environment activated would."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=home,
        env={**environment(home), "PATH": path},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, commands + result.stdout + result.stderr
    return result.stdout

"""Run an oracle (the original framework, in a process of its own) and read what it answered."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from converters.errors import ConversionError
from converters.offline import OFFLINE


def ask(module: str, *arguments: str | Path, answers: Path) -> dict[str, np.ndarray]:
    """The arrays that ``python -m MODULE ARGUMENTS ANSWERS`` wrote; ConversionError when it failed,
    with the last that it said."""
    command = [sys.executable, "-m", module, *map(str, arguments), str(answers)]
    run = subprocess.run(command, capture_output=True, text=True, env=OFFLINE, check=False)
    if run.returncode:
        raise ConversionError(f"the original model could not answer: {run.stderr.strip()[-1000:]}")
    with np.load(answers) as stored:
        return dict(stored)

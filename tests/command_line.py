"""``tidegate ARGUMENTS...`` in this process, for tests of what a verb does and prints: a separate
process would first import torch and transformers, which takes longer than most verbs."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from unittest import mock

from tests.running import environment
from tidegate.cli import main


def tidegate(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a separate process would run in ``home``; returns its outcome."""
    stdout, stderr = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    code = 0
    try:
        with (
            mock.patch.dict(os.environ, environment(home), clear=True),
            mock.patch.object(sys, "argv", ["tidegate", *arguments]),
            contextlib.redirect_stdout(stdout),
            contextlib.redirect_stderr(stderr),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # a command does not show most warnings
            main()
    except SystemExit as ended:
        assert ended.code is None or isinstance(ended.code, int), ended.code
        code = ended.code or 0
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    output = (stdout.getvalue(), stderr.getvalue())
    return subprocess.CompletedProcess(arguments, code, *output)

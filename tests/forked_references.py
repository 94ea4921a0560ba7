"""The processes of the tests' own conversions (references, probes of files), forked from one that
has loaded their libraries: importing torch or xgboost takes ten times as long as the work itself.

Each still runs in a process of its own, as the same module with the same arguments. Conversions
that the tests start through the command line start them as a user's would.

    python -m tests.forked_references < REQUESTS > RESPONSES    one JSON document per line
"""

import contextlib
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path

from converters.offline import OFFLINE

RESPONSE_S = 600.0  # only for a hang: the longest takes a minute on a busy machine
_TEXTS = ("torch", "transformers.pipelines", "transformers.modeling_utils")
# A module's libraries are loaded at its first use. None of them computes when imported: a process
# with running threads must not be forked.
LIBRARIES = {
    "converters.tasks.text_classification.reference": _TEXTS,
    "converters.tasks.text_ranking.reference": _TEXTS,
    "converters.tasks.token_classification.reference": _TEXTS,
    "converters.tasks.embedding.reference": ("sentence_transformers",),
    "converters.tasks.image_classification.reference": (
        *_TEXTS,
        "transformers.image_processing_utils",
    ),
    "converters.tasks.image_classification.efficientnet_reference": (
        *_TEXTS,
        "transformers.image_processing_utils",
    ),
    "converters.tasks.tabular.reference": (
        "converters.sources.tabular_model",
        "skops.io",
        "threadpoolctl",
    ),
    "converters.tasks.tensors.torch_reference": ("torch",),
    "converters.sources.booster_probe": ("xgboost", "lightgbm"),
    "converters.sources.graph_probe": ("onnxruntime", "converters.export.tensor_info"),
}


class ForkedReferences:
    """Replaces the module ``subprocess`` where a conversion starts one of these processes."""

    TimeoutExpired = subprocess.TimeoutExpired

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None

    def run(self, command: Sequence[str], **options: object) -> subprocess.CompletedProcess[str]:
        """Like ``subprocess.run``: ``command`` is ``python -m MODULE ARGUMENTS...``."""
        python, flag, module, *arguments = command
        if (python, flag) != (sys.executable, "-m") or module not in LIBRARIES:
            return subprocess.run(command, **options)
        server = self._started()
        assert server.stdin and server.stdout
        request = {"module": module, "arguments": arguments, "cwd": str(Path.cwd())}
        server.stdin.write(f"{json.dumps(request)}\n")
        server.stdin.flush()
        overdue = threading.Timer(RESPONSE_S, server.kill)
        overdue.start()
        try:
            line = server.stdout.readline()
        finally:
            overdue.cancel()
        assert line, (
            f"the references' process ended, or {module} did not answer in {RESPONSE_S:.0f} s"
        )
        response = json.loads(line)
        return subprocess.CompletedProcess(command, **response)

    def _started(self) -> subprocess.Popen[str]:
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "tests.forked_references"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=OFFLINE,
                cwd=Path(__file__).parent.parent,
                text=True,
            )
        return self._server

    def close(self) -> None:
        if self._server is not None:
            assert self._server.stdin and self._server.stdout
            self._server.stdin.close()
            self._server.wait(20)
            self._server.stdout.close()


def main() -> None:
    # Libraries print to stdout, so the responses get a descriptor of their own.
    responses = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        for name in LIBRARIES[request["module"]]:
            importlib.import_module(name)
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
            child = os.fork()
            if child == 0:
                _become(request, output.fileno(), errors.fileno())
            _, status = os.waitpid(child, 0)
            response = {"returncode": os.waitstatus_to_exitcode(status)}
            for name, stream in (("stdout", output), ("stderr", errors)):
                stream.seek(0)
                response[name] = stream.read()
        responses.write(f"{json.dumps(response)}\n")
        responses.flush()


def _become(request: dict, output: int, errors: int) -> None:
    """Run ``python -m MODULE ARGUMENTS...`` in its folder; does not return."""
    code = 1
    try:
        os.dup2(output, 1)
        os.dup2(errors, 2)
        with contextlib.suppress(OSError):
            sys.stdin.close()
        os.chdir(request["cwd"])
        sys.path[0] = request["cwd"]
        sys.argv = [request["module"], *request["arguments"]]
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        if isinstance(ended.code, str):
            sys.stderr.write(f"{ended.code}\n")
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()

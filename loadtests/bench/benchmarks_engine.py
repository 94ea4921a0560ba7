"""The overhead of Triton and its Python backends: over the bare model, and per request."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from loadtests.bench.errors import BenchError
from loadtests.bench.passes import Pass, alternate, wrk_pass
from loadtests.bench.payloads import embedding_v2, identity_json, texts
from loadtests.bench.report import Floor, Section, rows
from loadtests.bench.settings import ROOT, Effort
from loadtests.bench.stack import IDENTITY, IDENTITY_ONNX, BenchStack
from loadtests.bench.wrk import Figures, run

IN_PROCESS_FLOOR = 0.85
CONNECTIONS = 32
# threads, texts per run
IN_PROCESS = ((1, 1), (2, 1), (1, 8), (2, 8))
MODULE = "loadtests.bench.in_process"


def text_embedding(stack: BenchStack, effort: Effort) -> Section:
    """The pipeline behind Triton's HTTP API, against the model with no server around it."""
    ours = embedding_v2("Triton, V2 JSON", stack, "triton")
    run(ours, CONNECTIONS, 1)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "texts.json"
        file.write_text(json.dumps(texts()), encoding="utf-8")
        passes: dict[str, Pass] = {
            _name(*setting): _in_process(stack, file, setting, effort.seconds)
            for setting in IN_PROCESS
        }
        passes[ours.name] = wrk_pass(ours, CONNECTIONS, effort.seconds)
        rounds = alternate(passes, effort.rounds)
    best = max(list(passes)[:-1], key=lambda name: rounds.median(name).rps)
    return Section(
        "text_embedding (FP32) through Triton against the same model in process",
        rows(rounds, best, f"{CONNECTIONS} connections or none"),
        [Floor(f"Triton over {best}", rounds.throughput(ours.name, best), IN_PROCESS_FLOOR)],
        [
            "In process there is no request, so no latency; 8 texts of similar length out of each "
            "32."
        ],
    )


def backend_overhead(stack: BenchStack, effort: Effort) -> Section:
    """One connection, so that nothing is batched: the difference of the medians is per request."""
    python, onnx = (
        identity_json(name, stack, "triton", model)
        for name, model in (
            ("a Python model", IDENTITY),
            ("the onnxruntime backend", IDENTITY_ONNX),
        )
    )
    rounds = alternate(
        {target.name: wrk_pass(target, 1, effort.seconds) for target in (python, onnx)},
        effort.rounds,
    )
    added_us = (rounds.median(onnx.name).p50_ms - rounds.median(python.name).p50_ms) * 1e3
    note = (
        f"The backend adds {added_us:.0f} us to a request (p50, including ONNX Runtime's own run)."
    )
    return Section(
        "The Python-based onnxruntime backend over identity_fp32",
        rows(rounds, python.name, "1 connection"),
        (),
        [note],
    )


def _name(threads: int, batch: int) -> str:
    return f"in process, {threads} thread{'s' * (threads > 1)}, batch {batch}"


def _in_process(stack: BenchStack, file: Path, setting: tuple[int, int], seconds: int) -> Pass:
    threads, batch = setting
    command = [sys.executable, "-m", MODULE, "--model", str(stack.model_file)]
    command += ["--tokenizer", str(stack.tokenizer_file), "--texts", str(file)]
    command += ["--threads", str(threads), "--batch", str(batch), "--seconds", str(seconds)]

    def measured() -> Figures:
        result = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
        )
        if result.returncode != 0:
            raise BenchError(f"{_name(*setting)} failed: {result.stderr.strip()[-500:]}")
        return Figures(json.loads(result.stdout)["rps"], 0.0, 0.0, 0.0)

    return measured

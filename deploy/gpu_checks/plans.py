"""TensorRT engines of the checked models, if TensorRT is installed."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from deploy.gpu_checks.measured import milliseconds, parity
from deploy.gpu_checks.served import LARGEST_BATCH, TOKENS, feed


def build_all(work: Path, engines: list[dict[str, Any]], options: Any) -> dict[str, Any]:
    """One TensorRT plan per engine, by its name; or only ``missing``, why there is no TensorRT.
    Raises RuntimeError when a plan cannot be built."""
    from converters.tensorrt.available import missing

    reason = missing()
    if reason:
        return {"missing": reason}
    return {
        engine["served_as"]: _plan(work / f"plan-{engine['served_as']}", engine, options)
        for engine in engines
    }


def _plan(folder: Path, engine: dict[str, Any], options: Any) -> dict[str, object]:
    command = [sys.executable, "-m", "converters.tensorrt.onnx2trt", engine["files"]["onnx"]]
    command += ["--output", str(folder), f"--max-batch={LARGEST_BATCH}"]
    if engine["model"] == "text_embedding":
        command.append(f"--lengths={TOKENS}")
    started = time.perf_counter()
    run = subprocess.run(command, check=False)
    if run.returncode:
        raise RuntimeError(f"onnx2trt could not build {engine['served_as']}: see its output above")
    built_in_s = round(time.perf_counter() - started, 1)
    from converters.tensorrt.runner import TrtRunner

    runner = TrtRunner(folder / "model.plan")
    figures = {
        str(batch): round(_rows_per_s(runner, engine, batch, options.seconds), 1)
        for batch in options.batches
    }
    held = parity(engine, lambda rows: runner.run(None, rows)[0])
    return {"built_in_s": built_in_s, "parity": held, "in_process_rows_per_s": figures}


def _rows_per_s(runner: Any, engine: dict[str, Any], batch: int, seconds: float) -> float:
    rows = feed(engine["model"], batch)
    return batch / milliseconds(lambda: runner.run(None, rows)[0], seconds) * 1e3

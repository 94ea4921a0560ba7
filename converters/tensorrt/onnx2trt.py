"""ONNX -> a TensorRT engine for the GPU and the TensorRT of this machine, in a process of its own.

    python -m converters.tensorrt.onnx2trt model.onnx --output engine/ \\
        --max-batch 64 --lengths 16,32,64

A process of its own, so that the GPU's memory is released whatever happens. Writes into the folder:
``model.plan``; ``model.plan.json``, its stamp; ``model.onnx``, the graph it was built from; and
``reproduce.sh``. A plan that already has this machine's stamp is not built again.
"""

import argparse
import os
import shutil
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

if __name__ == "__main__" and not __package__:  # run by path: our packages are one folder up
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from converters.errors import ConversionError, EngineFailed, EngineUnavailable
from converters.tensorrt import reproduce, stamp
from converters.tensorrt.available import find_gpu, require_package
from converters.tensorrt.progress import ProgressLine
from modelspec.layout import ENGINE_FILE
from modelspec.profiles import USUAL_BATCH, batch_sizes, profiles

if TYPE_CHECKING:
    from converters.tensorrt.build import BuildRequest

BUILT, FAILED, UNAVAILABLE, STOPPED = 0, 1, 3, 130
EXAMPLE = (
    "example: python -m converters.tensorrt.onnx2trt model.onnx --output engine/ --max-batch 64 "
    "--lengths 16,32,64,128,256"
)


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 built (or already there), 1 failed, 2 invalid command line, 3 no GPU or no
    package, 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        run(options)
    except EngineUnavailable as error:
        _say(f"onnx2trt: {error}")
        return UNAVAILABLE
    except (ConversionError, ValueError, OSError) as error:
        _say(f"onnx2trt: {error}")
        return FAILED
    except KeyboardInterrupt:
        _say("onnx2trt: interrupted, nothing was written")
        return STOPPED
    return BUILT


def run(options: argparse.Namespace) -> None:
    """Build the engine unless it is already there; ConversionError, ValueError or OSError."""
    from converters.tensorrt.onnx_inputs import read_inputs

    batch = batch_sizes(options.max_batch, options.usual_batch)
    shapes = profiles(read_inputs(options.onnx), batch, options.lengths)
    gpu = find_gpu()
    require_package()
    from converters.tensorrt.build import BuildRequest, tensorrt_version

    version = tensorrt_version()
    target = stamp.stamp_of(options.onnx, gpu, version, shapes)
    reason = stamp.why_build(options.output, target)
    if not reason:
        _say(f"{options.output}: the engine is already there, built for this machine")
        return
    _say(f"building {options.output} for {gpu.name}, TensorRT {version}: {reason}")
    # One file for each release and kind of GPU: TensorRT refuses any other.
    cache = options.timing_cache / f"trt-{version}-sm{gpu.compute_capability}.timings"
    plan = build_or_stop(BuildRequest(options.onnx, shapes, options.workspace_mib, cache))
    options.output.mkdir(parents=True, exist_ok=True)
    copy_beside(options.onnx, options.output / ENGINE_FILE)
    reproduce.write(options.output, options)
    stamp.write(options.output, plan, target)


def copy_beside(onnx: Path, target: Path) -> None:
    """Copy the graph that the plan was built from, completely or not at all."""
    if onnx.resolve() != target.resolve():
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            shutil.copyfile(onnx, temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def build_or_stop(request: "BuildRequest") -> bytes:
    """The plan; KeyboardInterrupt if a signal stopped the build, which ends after the current step.

    TensorRT builds on another thread: Python handles signals on the main thread only, which would
    be inside TensorRT until the end.
    """
    from converters.tensorrt.build import build_plan

    stop = threading.Event()
    line = ProgressLine(sys.stderr, stop)

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()

    handlers = {
        number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        with ThreadPoolExecutor(1) as pool:
            build = pool.submit(build_plan, request, line)
            while not build.done():
                stop.wait(0.2)  # with no timeout, the signal would not be seen
                if stop.is_set():
                    break
            plan = build.result()
    except EngineFailed:
        if stop.is_set():
            raise KeyboardInterrupt from None
        raise
    finally:
        line.close()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return plan


def _lengths(text: str) -> tuple[int, ...]:
    return tuple(int(length) for length in text.split(",") if length)


def _parser() -> argparse.ArgumentParser:
    from converters.cache import cache_root

    parser = argparse.ArgumentParser(
        prog="python -m converters.tensorrt.onnx2trt",
        description="Build a TensorRT engine for this machine's GPU from an ONNX file. The "
        "network is strongly typed: the graph decides the precision (docs/precisions.md).",
        epilog=EXAMPLE,
    )
    add = parser.add_argument
    add("onnx", type=Path, help="the graph; the first axis of every input is the batch")
    add("--output", type=Path, required=True, help="folder for model.plan and its files")
    add("--max-batch", type=int, required=True, help="largest batch to serve")
    add(
        "--usual-batch",
        type=int,
        default=USUAL_BATCH,
        help="batch that kernels are tuned for (8)",
    )
    add("--lengths", type=_lengths, default=(), help="buckets of variable-length axes: 16,32,64")
    add("--workspace-mib", type=int, default=4096, help="GPU memory for building (4096)")
    add(
        "--timing-cache",
        type=Path,
        default=cache_root() / "timings",
        help="folder for measured kernel timings (default: beside the conversions in the cache)",
    )
    return parser


def _say(text: str) -> None:
    sys.stderr.write(f"{' '.join(text.split())}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())

"""ONNX -> a TensorRT engine for the GPU and the TensorRT of this machine, in a process of its own.

    python -m converters.onnx2trt model.onnx --output engine/ --max-batch 64 --lengths 16,32,64

Its own process, so that the GPU's memory comes back whatever happens. Writes into the folder:
``model.plan``; ``model.plan.json``, its stamp; ``model.onnx``, what it was built from; and
``reproduce.sh``. A plan whose stamp is this machine's is left as it is.
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

if __name__ == "__main__" and not __package__:  # run by its path: our packages lie one up
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from converters.errors import ConversionError, EngineFailed, EngineUnavailable
from converters.trt import reproduce, stamp
from converters.trt.available import find_gpu, require_package
from converters.trt.progress import ProgressLine
from modelspec.layout import ENGINE_FILE
from modelspec.profiles import USUAL_BATCH, batch_sizes, profiles

if TYPE_CHECKING:
    from converters.trt.build import BuildRequest

BUILT, FAILED, UNAVAILABLE, STOPPED = 0, 1, 3, 130
EXAMPLE = (
    "example: python -m converters.onnx2trt model.onnx --output engine/ --max-batch 64 "
    "--lengths 16,32,64,128,256"
)


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 built (or there already), 1 failed, 2 a wrong command line, 3 no GPU or no
    package, 130 stopped."""
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
        _say("onnx2trt: stopped, nothing was written")
        return STOPPED
    return BUILT


def run(options: argparse.Namespace) -> None:
    """Build what is wished, unless it is there; ConversionError, ValueError or OSError."""
    from converters.trt.onnx_inputs import read_inputs

    batch = batch_sizes(options.max_batch, options.usual_batch)
    found = profiles(read_inputs(options.onnx), batch, options.lengths)
    gpu = find_gpu()
    require_package()
    from converters.trt.build import BuildRequest, tensorrt_version

    version = tensorrt_version()
    wanted = stamp.stamp_of(options.onnx, gpu, version, found)
    reason = stamp.why_build(options.output, wanted)
    if not reason:
        _say(f"{options.output}: the engine is there, and of this machine")
        return
    _say(f"building {options.output} for {gpu.name}, TensorRT {version}: {reason}")
    # One file for each release and kind of GPU: TensorRT refuses any other.
    cache = options.timing_cache / f"trt-{version}-sm{gpu.compute_capability}.timings"
    plan = build_or_stop(BuildRequest(options.onnx, found, options.workspace_mib, cache))
    options.output.mkdir(parents=True, exist_ok=True)
    copy_beside(options.onnx, options.output / ENGINE_FILE)
    reproduce.write(options.output, options)
    stamp.write(options.output, plan, wanted)


def copy_beside(onnx: Path, beside: Path) -> None:
    """What the plan was built from, whole or not at all."""
    if onnx.resolve() != beside.resolve():
        temporary = beside.with_name(f".{beside.name}.{os.getpid()}.tmp")
        try:
            shutil.copyfile(onnx, temporary)
            temporary.replace(beside)
        finally:
            temporary.unlink(missing_ok=True)


def build_or_stop(order: "BuildRequest") -> bytes:
    """The plan. A signal ends the build after its present step: KeyboardInterrupt.

    TensorRT builds on a thread, for Python sees a signal on the main thread only, and that one
    would be inside TensorRT until the end.
    """
    from converters.trt.build import build_plan

    stop = threading.Event()
    line = ProgressLine(sys.stderr, stop)

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()

    before = {each: signal.signal(each, on_signal) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        with ThreadPoolExecutor(1) as pool:
            building = pool.submit(build_plan, order, line)
            while not building.done():
                stop.wait(0.2)  # a wait without an end would not see the signal
                if stop.is_set():
                    break
            plan = building.result()
    except EngineFailed:
        if stop.is_set():
            raise KeyboardInterrupt from None
        raise
    finally:
        line.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    return plan


def _lengths(text: str) -> tuple[int, ...]:
    return tuple(int(each) for each in text.split(",") if each)


def _parser() -> argparse.ArgumentParser:
    from converters.cache import cache_root

    parser = argparse.ArgumentParser(
        prog="python -m converters.onnx2trt",
        description="Build a TensorRT engine for this machine's GPU from an ONNX file. The "
        "network is strongly typed: precision is what the graph says (docs/precisions.md).",
        epilog=EXAMPLE,
    )
    add = parser.add_argument
    add("onnx", type=Path, help="the graph; every input's first axis is the batch")
    add("--output", type=Path, required=True, help="folder for model.plan and what belongs to it")
    add("--max-batch", type=int, required=True, help="the largest batch that is served")
    add("--usual-batch", type=int, default=USUAL_BATCH, help="kernels are chosen for it (8)")
    add("--lengths", type=_lengths, default=(), help="buckets of axes of any length: 16,32,64")
    add("--workspace-mib", type=int, default=4096, help="GPU memory for building (4096)")
    add(
        "--timing-cache",
        type=Path,
        default=cache_root() / "timings",
        help="folder where measured kernels are kept (beside the conversions in the cache)",
    )
    return parser


def _say(text: str) -> None:
    sys.stderr.write(f"{' '.join(text.split())}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())

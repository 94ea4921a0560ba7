"""Check and measure the two known models on this machine's GPU; writes one JSON report.

    python deploy/gpu_check.py --json out.json             on a GPU box, from a checkout
    python deploy/gpu_check.py --install --json out.json   the same if nothing is installed yet
    python deploy/gpu_check.py --cpu --json out.json       the same path on a CPU

Starts a real Triton with ``configs/gpu.pbtxt`` (ONNX Runtime on CUDA; torch on CUDA if the
installed ONNX Runtime has no CUDA), serves MiniLM and EfficientNet in FP32 and FP16, compares them
with the proved FP32 graph on the CPU, and measures rows/s at each batch size through gRPC and in
this process. Images are sent as UINT8 and normalised in the graph. Builds TensorRT engines of
both if TensorRT is installed. The JSON, with hardware and versions, is written even if something
fails, and Triton's log beside it (out.triton.log). Exit codes: 0 all held, 1 something failed, 2
no GPU.
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from deploy.gpu_checks import machine  # noqa: E402 - from this checkout; the others need packages

MODELS = ("text_embedding", "image_classification")
PRECISIONS = ("fp32", "fp16")
BATCHES = (1, 2, 4, 8, 16, 32, 64)
# From scratch on a GPU machine: the CUDA build of ONNX Runtime replaces the CPU build.
INSTALL = (
    ("install", "-q", "-c", "constraints.txt", "-e", ".[convert,server]"),
    ("uninstall", "-q", "-y", "onnxruntime"),
    ("install", "-q", "-c", "constraints.txt", "onnxruntime-gpu[cuda,cudnn]"),
)
Report = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if not options.cpu and not machine.gpus():
        say("gpu_check: no NVIDIA GPU here (nvidia-smi shows none): run it on one, or with --cpu")
        return 2
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs ignore the first
        signal.signal(number, signal.default_int_handler)
    report: Report = {"passed": False, "error": "", "command": sys.argv[1:], "engines": []}
    try:
        install(options.install)
        report |= machine.surroundings(options.cpu)
        check(options, report)
        report["passed"] = all(parity["passed"] for parity in parities(report))
    except ImportError as error:
        report["error"] = f"{error}: run with --install, or make .venv/.up and .venv/bin/python"
    except KeyboardInterrupt:
        report["error"] = "stopped"
    except Exception as error:  # whatever fails, the measurements so far are saved
        report["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:1000]}"
    finally:
        for engine in report["engines"]:
            engine.pop("files")  # of a folder that no longer exists
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    verdict = "all held" if report["passed"] else report["error"] or "parity did not hold"
    say(f"{options.json}: {verdict}")
    return 0 if report["passed"] else 1


def parities(report: Report) -> list[dict[str, object]]:
    """All comparisons: of the served engines and of the TensorRT plans."""
    checked = [*report["engines"], *report["tensorrt"].values()]
    return [entry["parity"] for entry in checked if isinstance(entry, dict)]


def install(enabled: bool) -> None:
    """Install all dependencies into the running Python, which should be a virtual environment."""
    for arguments in INSTALL if enabled else ():
        subprocess.run([sys.executable, "-m", "pip", *arguments], check=True, cwd=ROOT)


def check(options: argparse.Namespace, report: Report) -> None:
    """Fill in the report, one measurement at a time."""
    from deploy.gpu_checks import measured, plans, served

    runs_on = options.engine or served.chosen_engine(options.cpu)
    report["runs_on"] = f"{runs_on} on {'the CPU' if options.cpu else 'CUDA'}"
    with tempfile.TemporaryDirectory(prefix="tidegate-gpu-check-") as folder:
        work = Path(folder)
        with served.triton(work, None if options.cpu else "gpu") as server:
            try:
                report["versions"]["tritonserver"] = measured.server_version(server.control.address)
                for name in options.models:
                    for precision in options.precisions:
                        engine = served.stage(work, (name, precision), runs_on, options)
                        report["engines"].append(engine)
                        server.control.load(engine["served_as"])
                        measured.measure(engine, server.control.address, options)
            finally:
                shutil.copy(server.log_file, options.json.with_suffix(".triton.log"))
        report["tensorrt"] = plans.build_all(work, report["engines"], options)


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def _parser() -> argparse.ArgumentParser:
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--json", type=Path, required=True, metavar="FILE", help="file for the report")
    add("--cpu", action="store_true", help="take the same path on the CPU")
    add("--install", action="store_true", help="pip install the dependencies first")
    add("--engine", choices=("onnxruntime", "torch"), help="default: the one with CUDA")
    add("--models", nargs="+", choices=MODELS, default=MODELS)
    add("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    add("--batches", type=_numbers, default=BATCHES, help="default: 1,2,4,8,16,32,64")
    add("--instances", type=int, default=1, help="of each engine on the GPU (1)")
    add("--cuda-graphs", action="store_true", help="replay each shape as a CUDA graph")
    add("--seconds", type=float, default=3.0, help="per figure")
    return parser


if __name__ == "__main__":
    sys.exit(main())

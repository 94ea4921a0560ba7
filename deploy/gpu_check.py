"""What a machine's GPU makes of the two known models, in one JSON with hardware and versions.

    python deploy/gpu_check.py --json out.json             on a GPU box, from a checkout
    python deploy/gpu_check.py --install --json out.json   the same where nothing is installed yet
    python deploy/gpu_check.py --cpu --json out.json       the very same path on a CPU

Starts a real Triton with ``configs/gpu.pbtxt`` (ONNX Runtime on CUDA; where that build of ONNX
Runtime has no CUDA: torch on CUDA), serves MiniLM and EfficientNet in FP32 and FP16, compares with
the proved FP32 graph on the CPU, and measures rows/s at each batch size through gRPC and in this
process. Builds TensorRT engines of both where the package is there. What was measured is in the
JSON also when something fails; exit code 0 all held, 1 something failed, 2 no GPU.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from deploy.gpu_checks import machine  # noqa: E402 - found there; the others need packages

MODELS = ("text_embedding", "image_classification")
PRECISIONS = ("fp32", "fp16")
BATCHES = (1, 2, 4, 8, 16, 32, 64)
# A box with a GPU, from nothing: the build of ONNX Runtime for CUDA in place of the other.
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
        report["passed"] = all(each["passed"] for each in parities(report))
    except ImportError as error:
        report["error"] = f"{error}: run with --install, or make .venv/.up and .venv/bin/python"
    except KeyboardInterrupt:
        report["error"] = "stopped"
    except Exception as error:  # whatever it is, what was measured is kept
        report["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:1000]}"
    finally:
        for each in report["engines"]:
            each.pop("files")  # of a folder that is gone
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    verdict = "all held" if report["passed"] else report["error"] or "parity did not hold"
    say(f"{options.json}: {verdict}")
    return 0 if report["passed"] else 1


def parities(report: Report) -> list[dict[str, Any]]:
    """Every comparison that was made: of what was served, and of the plans."""
    made = [*report["engines"], *report["tensorrt"].values()]
    return [each["parity"] for each in made if isinstance(each, dict)]


def install(wanted: bool) -> None:
    """Everything that is needed, into the Python that runs this: give it an environment."""
    for each in INSTALL if wanted else ():
        subprocess.run([sys.executable, "-m", "pip", *each], check=True, cwd=ROOT)


def check(options: argparse.Namespace, report: Report) -> None:
    """Fill in the report, measurement by measurement."""
    from deploy.gpu_checks import measured, plans, served

    runs_on = options.engine or served.chosen_engine(options.cpu)
    report["runs_on"] = f"{runs_on} on {'the CPU' if options.cpu else 'CUDA'}"
    with tempfile.TemporaryDirectory(prefix="tidegate-gpu-check-") as folder:
        work = Path(folder)
        with served.triton(work, None if options.cpu else "gpu") as server:
            report["versions"]["tritonserver"] = measured.server_version(server.control.address)
            for name in options.models:
                for precision in options.precisions:
                    engine = served.stage(work, (name, precision), runs_on, options.cpu)
                    report["engines"].append(engine)
                    server.control.load(engine["served_as"])
                    measured.measure(engine, server.control.address, options)
        report["tensorrt"] = plans.build_all(work, report["engines"], options)


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(each) for each in text.split(","))


def _parser() -> argparse.ArgumentParser:
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--json", type=Path, required=True, metavar="FILE", help="where the report goes")
    add("--cpu", action="store_true", help="the same path on the CPU")
    add("--install", action="store_true", help="pip install what is needed first")
    add("--engine", choices=("onnxruntime", "torch"), help="default: what has CUDA")
    add("--models", nargs="+", choices=MODELS, default=MODELS)
    add("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    add("--batches", type=_numbers, default=BATCHES, help="1,2,4,8,16,32,64")
    add("--seconds", type=float, default=3.0, help="for each figure")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""Print the figures of a report as the Markdown in docs/gpu.md.

python -m deploy.gpu_checks.table out.json
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEAD = (
    "| model | parity: difference, cosine | batch | gRPC, rows/s | in process, rows/s "
    "| bound, rows/s | share | road, ms |"
)
FIGURES = ("batch", "grpc", "in_process", "bound", "share", "road_ms")


def lines(report: dict[str, Any]) -> Iterator[str]:
    """The machine, then a line for each figure."""
    hardware, versions = report["hardware"], report["versions"]
    gpus = ", ".join(gpu["name"] for gpu in hardware["gpus"]) or "**no GPU**"
    yield f"{report['made_at']}: {report['runs_on']}, {gpus}, {hardware['cpu']}"
    yield f"({hardware['cores']} cores); Triton {versions['tritonserver']},"
    yield f"ONNX Runtime {versions.get('onnxruntime-gpu') or versions.get('onnxruntime')};"
    yield f"`python deploy/gpu_check.py {' '.join(report['command'])}`"
    yield f"\n{HEAD}\n|{'---|' * HEAD.count(' | ')}---|"
    for engine in report["engines"]:
        parity = engine.get("parity", {"difference": None, "cosine": None})
        cells = (
            f"{engine['served_as']} | {_short(parity['difference'])}, {_short(parity['cosine'])}"
        )
        for row in engine.get("rows_per_s", ()):
            figures = (row.get(name, "") for name in FIGURES)
            yield f"| {cells} | {' | '.join(map(str, figures))} |"
            cells = " | "
    yield f"\nTensorRT: {report.get('tensorrt', {}).get('missing') or report.get('tensorrt')}"
    if report["error"]:
        yield f"\n**It failed:** {report['error']}"


def _short(number: float | None) -> str:
    return "none" if number is None else f"{number:.6g}"


if __name__ == "__main__":
    document = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    sys.stdout.write("\n".join(lines(document)) + "\n")

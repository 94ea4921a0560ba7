"""Load an ONNX graph in a process of its own, under a memory limit, and print its inputs and
outputs.

    python -m converters.sources.graph_probe MODEL

A small graph can allocate a terabyte, or crash the runtime: then only this process dies.
"""

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from converters.errors import SourceRefused
from converters.export.tensor_info import TensorInfo
from converters.offline import OFFLINE
from modelspec.dtypes import ONNX_NAMES

TIMEOUT_S = 300.0
# Address space: the runtime itself maps about 2 GB, and constant folding makes copies.
MEMORY_BYTES = 8 * 1024**3
REFUSED = 3


def probe(graph: Path, path: Path) -> dict[str, Any]:
    """``inputs`` and ``outputs`` as ``TensorInfo.metadata``, ``ids`` as ``id_counts``;
    SourceRefused says why the ``graph`` cannot be served. ``path`` is the user's file that it was
    made from (mostly the same one), which errors name."""
    command = [sys.executable, "-m", "converters.sources.graph_probe", str(graph)]
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, env=OFFLINE, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise SourceRefused(
            f"{path} takes over {TIMEOUT_S:.0f} s to load: export a smaller graph"
        ) from None
    if run.returncode == 0:
        return dict(json.loads(run.stdout))
    if run.returncode == REFUSED:
        raise SourceRefused(f"{path}: {run.stderr.strip().splitlines()[-1]}")
    raise SourceRefused(
        f"{path} crashed ONNX Runtime while loading (it needs too much memory, or is malformed): "
        "check the graph with onnx.checker"
    )


def signature_of(session: Any) -> dict[str, list[dict[str, object]]]:
    """The graph's ``inputs`` and ``outputs`` as ``TensorInfo.metadata``; ValueError with cause and
    remedy when Triton cannot serve them."""
    return {
        "inputs": [_tensor_info(node, "input").metadata() for node in session.get_inputs()],
        "outputs": [_tensor_info(node, "output").metadata() for node in session.get_outputs()],
    }


def _tensor_info(node: Any, side: str) -> TensorInfo:
    if not node.type.startswith("tensor("):
        raise ValueError(
            f"{side} {node.name!r} is a {node.type}, and Triton serves only tensors: export the "
            "model without it (skl2onnx: options={'zipmap': False})"
        )
    if node.type not in ONNX_NAMES:
        raise ValueError(
            f"{side} {node.name!r} is a {node.type}, which Triton cannot serve: cast it inside "
            "the graph, from or to FP32"
        )
    if not node.shape:
        raise ValueError(
            f"{side} {node.name!r} has no batch axis (or no declared shape): export every input "
            "and output with a dynamic first axis"
        )
    first, *rest = node.shape
    if isinstance(first, int):
        raise ValueError(
            f"{side} {node.name!r} has the shape {list(node.shape)}: its first axis is fixed to "
            f"{first}, so it takes no batch. Export it again with a dynamic first axis "
            f"(torch.onnx.export(..., dynamic_axes={{{node.name!r}: {{0: 'batch'}}}}))"
        )
    dims = tuple(axis if isinstance(axis, int) else -1 for axis in rest)
    names = tuple(axis if isinstance(axis, str) else "" for axis in rest)
    return TensorInfo(node.name, ONNX_NAMES[node.type], dims, names, flat=not rest)


def reason_of(error: Exception) -> str:
    """ONNX Runtime's message without its prefixes and source paths."""
    text = " ".join(str(error).split())
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"^Load model from \S+ failed:", "", text)
    text = re.sub(r"/onnxruntime_src/\S+ [^ ]*\([^)]*\) ", "", text)
    return text[:400]


_REMEDIES = (
    (
        r"is not a registered function/op",
        "Custom operator libraries are never loaded: export it without them, with standard "
        "operators or with a function inside the file",
    ),
    (r"locale", "Install that locale, or export the operator with another"),
    (r"(?i)allocat|bad_alloc", "It needs more memory than there is: export it with smaller axes"),
    (
        r"Could not find an implementation|(?i:opset)|IR.version|not currently registered|"
        r"NOT_IMPLEMENTED",
        "Export it with operators, types and an opset that this version has",
    ),
    (
        r"",
        "The file is invalid or damaged: onnx.checker.check_model says more; export it again",
    ),
)


def limit_memory(path: str) -> None:
    """Limit this process's address space, with room for several copies of the model ``path``."""
    files = [file for file in Path(path).parent.iterdir() if file.is_file()]
    limit = MEMORY_BYTES + 6 * sum(min(file.stat().st_size, 2 * 1024**3) for file in files)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main(path: str) -> None:
    limit_memory(path)
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        signature = signature_of(session)
        print(json.dumps({**signature, "ids": _ids(session, signature["inputs"])}))  # noqa: T201
    except ValueError as error:
        _refuse(str(error))
    except Exception as error:  # ONNX Runtime's errors share no base class
        _refuse(
            f"ONNX Runtime {ort.__version__} cannot run it: {reason_of(error).rstrip('. ')}. "
            f"{remedy(str(error))}"
        )


def remedy(text: str) -> str:
    """What to do about a graph that ONNX Runtime refuses with this message."""
    return next(advice for pattern, advice in _REMEDIES if re.search(pattern, text))


def _ids(session: Any, inputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``id_counts`` of the graph, measured with made-up rows; {} when it takes none of them."""
    from converters.sources.ids import id_counts
    from converters.sources.made_up_rows import made_up
    from converters.sources.tensor_source import to_feed

    tensors = [TensorInfo.from_metadata(metadata) for metadata in inputs]
    (*_, group) = made_up(tensors)
    row = {
        name: np.zeros_like(values[:1]) if values.dtype.kind in "iu" else values[:1]
        for name, values in group.items()
    }
    counts = id_counts(lambda feed: session.run(None, to_feed(feed)), row)
    open_inputs = {tensor.name for tensor in tensors if -1 in tensor.dims}
    ids: dict[str, Any] = {}
    for name, count in counts.items():
        if name not in open_inputs:
            ids[name] = count.tolist()
        # An open axis was tried at one length: only one limit for all holds at any other.
        elif (count == count.flat[0]).all():
            ids[name] = int(np.max(count))
    return ids


def _refuse(reason: str) -> None:
    sys.stderr.write(f"{' '.join(reason.split())}\n")
    sys.stderr.flush()
    os._exit(REFUSED)


if __name__ == "__main__":
    main(sys.argv[1])

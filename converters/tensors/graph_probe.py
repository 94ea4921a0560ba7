"""Load an ONNX graph in a process of its own, under a memory limit, and say what it takes.

    python -m converters.tensors.graph_probe MODEL

A graph can be small and ask for a terabyte, or crash the runtime: then only this process dies.
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
from converters.offline import OFFLINE
from converters.sources.tensor_source import TensorInfo

TIMEOUT_S = 300.0
# Address space: the runtime itself maps about 2 GB, and the constants are folded into copies.
MEMORY_BYTES = 8 * 1024**3
REFUSED = 3
V2_TYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}


def probe(graph: Path, path: Path) -> dict[str, Any]:
    """``inputs`` and ``outputs`` as ``TensorInfo.metadata``, ``ids`` as ``id_counts``;
    SourceRefused says
    why the ``graph`` made of the file ``path`` (the same, mostly) cannot be served."""
    command = [sys.executable, "-m", "converters.tensors.graph_probe", str(graph)]
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, env=OFFLINE, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise SourceRefused(f"{path} takes over {TIMEOUT_S:.0f} s to load: it is refused") from None
    if run.returncode == 0:
        return dict(json.loads(run.stdout))
    if run.returncode == REFUSED:
        raise SourceRefused(f"{path}: {run.stderr.strip().splitlines()[-1]}")
    raise SourceRefused(
        f"{path} broke ONNX Runtime while it was loaded (it wants too much memory, or is "
        "malformed): check the graph with onnx.checker"
    )


def ports(session: Any) -> dict[str, list[dict[str, Any]]]:
    """What the graph takes and gives; ValueError with cause and remedy when Triton cannot serve
    it."""
    return {
        "inputs": [_port(node, "input").metadata() for node in session.get_inputs()],
        "outputs": [_port(node, "output").metadata() for node in session.get_outputs()],
    }


def _port(node: Any, side: str) -> TensorInfo:
    if not node.type.startswith("tensor("):
        raise ValueError(
            f"{side} {node.name!r} is a {node.type}, and Triton carries only tensors: export "
            "without it (skl2onnx: options={'zipmap': False})"
        )
    if node.type not in V2_TYPES:
        raise ValueError(
            f"{side} {node.name!r} holds {node.type}, which Triton cannot carry: cast it inside "
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
    return TensorInfo(node.name, V2_TYPES[node.type], dims, names, flat=not rest)


def reason_of(error: Exception) -> str:
    """ONNX Runtime's own words, without the paths of its sources."""
    text = " ".join(str(error).split())
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"^Load model from \S+ failed:", "", text)
    text = re.sub(r"/onnxruntime_src/\S+ [^ ]*\([^)]*\) ", "", text)
    return text[:400]


_REMEDIES = (
    (
        r"is not a registered function/op",
        "Operators of a library of your own are never loaded: export it without, as standard "
        "operators or as a function within the file",
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
        "It was written wrongly or is damaged: onnx.checker.check_model says more; export it again",
    ),
)


def limit_memory(path: str) -> None:
    """What this process may map from now on: room for the model in ``path``, several times over."""
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
        found = ports(session)
        print(json.dumps({**found, "ids": _ids(session, found["inputs"])}))  # noqa: T201
    except ValueError as error:
        _refuse(str(error))
    except Exception as error:  # ONNX Runtime's errors share no base class
        _refuse(
            f"ONNX Runtime {ort.__version__} cannot run it: {reason_of(error).rstrip('. ')}. "
            f"{remedy(str(error))}"
        )


def remedy(text: str) -> str:
    """What to do about a graph that ONNX Runtime refuses with these words."""
    return next(todo for said, todo in _REMEDIES if re.search(said, text))


def _ids(session: Any, inputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``id_counts`` of the graph, asked with made-up rows; {} when it takes none of them."""
    from converters.tensors.ids import id_counts
    from converters.tensors.proof import as_fed
    from converters.tensors.samples import made_up

    ports_in = [TensorInfo.from_facts(each) for each in inputs]
    (*_, group) = made_up(ports_in)
    row = {
        name: np.zeros_like(each[:1]) if each.dtype.kind in "iu" else each[:1]
        for name, each in group.items()
    }
    counts = id_counts(lambda feed: session.run(None, as_fed(feed)), row)
    # An open axis was tried at one length, and any other has the same limit.
    opened = {port.name for port in ports_in if -1 in port.dims}
    return {
        name: int(np.max(each))
        if name in opened and (each == each.flat[0]).all()
        else each.tolist()
        for name, each in counts.items()
        if name not in opened or (each == each.flat[0]).all()
    }


def _refuse(reason: str) -> None:
    sys.stderr.write(f"{' '.join(reason.split())}\n")
    sys.stderr.flush()
    os._exit(REFUSED)


if __name__ == "__main__":
    main(sys.argv[1])

"""Does the config match the ONNX file? Decided by our backend's own comparison; the file is read
with onnxruntime, or with the package onnx if that is missing or the file is large."""

from collections.abc import Iterator, Mapping

from modelspec.parameters import INTER_OP_THREADS, INTRA_OP_THREADS
from serving.lint import graph_file
from serving.lint.finding import Finding, error
from serving.lint.graph_file import ort_graph
from serving.lint.reading import Model

_THREADS = (INTRA_OP_THREADS, INTER_OP_THREADS)
_SWITCHES: Mapping[str, tuple[str, ...]] = {
    "enable_mem_arena": ("0", "1", "true", "false"),
    "enable_mem_pattern": ("0", "1", "true", "false"),
    "execution_mode": ("0", "1"),
}
_ACCELERATORS: Mapping[str, tuple[str, ...]] = {"cpu": ("openvino",), "gpu": ("tensorrt", "cuda")}


def check(model: Model) -> Iterator[Finding]:
    if model.backend != "onnxruntime":
        return
    for file in model.graphs:
        location = file.path.relative_to(model.folder.parent).as_posix()
        if file.fault:
            yield error(
                "graph-broken", location, f"cannot be loaded: {file.fault}", "export it again"
            )
        elif file.graph is not None:
            yield from _compared(model, file.graph, file.is_exact, location)
    yield from _options(model)


def _compared(model: Model, graph: ort_graph.Graph, is_exact: bool, file: str) -> Iterator[Finding]:
    config = graph_file.as_backend_sees(model.config)
    config["name"] = model.name
    try:
        ort_graph.drop_empty_reshape(config)
        if not ort_graph.is_complete(config):
            # The backend completes from the newest version, and compares every version with that.
            newest = [read.graph for read in model.graphs if read.graph][-1]
            ort_graph.complete_config(config, newest)
    except ort_graph.ModelRefused as refused:
        message, _, fix = str(refused).rpartition(": ")
        yield error("graph-type", model.location, message, fix)
        return
    for disagreement in ort_graph.disagreements(config, graph, lambda _: None):
        if is_exact or not _may_be_inferred(disagreement):
            yield _finding(model, disagreement, file)


def _may_be_inferred(disagreement: ort_graph.Disagreement) -> bool:
    return disagreement.side == "output" and disagreement.kind in ("shape", "batch")


def _finding(model: Model, disagreement: ort_graph.Disagreement, file: str) -> Finding:
    location = f"{model.location}:{disagreement.tensor}" if disagreement.tensor else model.location
    message = f"{disagreement.message} ({file})"
    # One call per code, so that a search for a code finds it.
    match disagreement.kind:
        case "unknown":
            return error("graph-tensor-unknown", location, message, disagreement.fix)
        case "undeclared":
            return error("graph-input-undeclared", location, message, disagreement.fix)
        case "type":
            return error("graph-type", location, message, disagreement.fix)
        case "batch":
            return error("graph-batch-fixed", location, message, disagreement.fix)
        case "optional":
            return error("graph-optional", location, message, disagreement.fix)
        case "unsupported":
            return error("graph-unsupported", location, message, disagreement.fix)
    return error("graph-shape", location, message, disagreement.fix)


def _options(model: Model) -> Iterator[Finding]:
    """Findings about the parameters of an ONNX Runtime session."""
    for name, value in model.parameters.items():
        if name in _THREADS and not value.strip().lstrip("+-").isdecimal():
            yield _option(model, name, value, "a number of threads")
        elif name in _SWITCHES and value.lower() not in _SWITCHES[name]:
            yield _option(model, name, value, "0 or 1")
    accelerators = model.config.optimization.execution_accelerators
    for device, known in _ACCELERATORS.items():
        field = f"{device}_execution_accelerator"
        for accelerator in getattr(accelerators, field):
            if accelerator.name not in known:
                yield _option(model, field, accelerator.name, " or ".join(known))


def _option(model: Model, name: str, value: str, valid: str) -> Finding:
    return error("option-bad", model.location, f"{name} cannot be {value!r}", f"write {valid}")

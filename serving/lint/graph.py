"""Does the config say what the ONNX file says? Asked of our backend's own comparison; read with
onnxruntime, or with the package onnx where that is missing or the file is large."""

from collections.abc import Iterator, Mapping

from serving.lint import graph_file
from serving.lint.finding import Finding, error
from serving.lint.graph_file import ort_graph
from serving.lint.reading import Model

_THREADS = ("intra_op_thread_count", "inter_op_thread_count")
_SWITCHES: Mapping[str, tuple[str, ...]] = {
    "enable_mem_arena": ("0", "1", "true", "false"),
    "enable_mem_pattern": ("0", "1", "true", "false"),
    "execution_mode": ("0", "1"),
}
_ACCELERATORS: Mapping[str, tuple[str, ...]] = {"cpu": ("openvino",), "gpu": ("tensorrt", "cuda")}


def check(model: Model) -> Iterator[Finding]:
    if model.backend != "onnxruntime":
        return
    for read in model.graphs:
        place = read.path.relative_to(model.folder.parent).as_posix()
        if read.fault:
            yield error("graph-broken", place, f"cannot be loaded: {read.fault}", "export it again")
        elif read.graph is not None:
            yield from _compared(model, read.graph, read.is_sure, place)
    yield from _options(model)


def _compared(model: Model, graph: ort_graph.Graph, is_sure: bool, file: str) -> Iterator[Finding]:
    config = graph_file.as_backend_sees(model.config)
    config["name"] = model.name
    try:
        ort_graph.drop_empty_reshape(config)
        if not ort_graph.is_complete(config):
            # The backend completes from the newest version, and compares each with that.
            newest = [each.graph for each in model.graphs if each.graph][-1]
            ort_graph.complete_config(config, newest)
    except ort_graph.ModelRefused as refused:
        says, _, fix = str(refused).rpartition(": ")
        yield error("graph-type", model.place, says, fix)
        return
    for each in ort_graph.disagreements(config, graph, lambda _: None):
        if is_sure or not _may_be_inferred(each):
            yield _finding(model, each, file)


def _may_be_inferred(each: ort_graph.Disagreement) -> bool:
    return each.side == "output" and each.kind in ("shape", "batch")


def _finding(model: Model, each: ort_graph.Disagreement, file: str) -> Finding:
    place = f"{model.place}:{each.tensor}" if each.tensor else model.place
    says = f"{each.says} ({file})"
    # One call for each code, so that each stands where it is looked for.
    match each.kind:
        case "unknown":
            return error("graph-tensor-unknown", place, says, each.fix)
        case "undeclared":
            return error("graph-input-undeclared", place, says, each.fix)
        case "type":
            return error("graph-type", place, says, each.fix)
        case "batch":
            return error("graph-batch-fixed", place, says, each.fix)
        case "optional":
            return error("graph-optional", place, says, each.fix)
        case "unsupported":
            return error("graph-unsupported", place, says, each.fix)
    return error("graph-shape", place, says, each.fix)


def _options(model: Model) -> Iterator[Finding]:
    """Parameters that ONNX Runtime is opened with."""
    for name, value in model.parameters.items():
        if name in _THREADS and not value.strip().lstrip("+-").isdecimal():
            yield _option(model, name, value, "a number of threads")
        elif name in _SWITCHES and value.lower() not in _SWITCHES[name]:
            yield _option(model, name, value, "0 or 1")
    accelerators = model.config.optimization.execution_accelerators
    for where, known in _ACCELERATORS.items():
        for each in getattr(accelerators, f"{where}_execution_accelerator"):
            if each.name not in known:
                yield _option(
                    model, f"{where}_execution_accelerator", each.name, " or ".join(known)
                )


def _option(model: Model, name: str, value: str, right: str) -> Finding:
    return error("option-bad", model.place, f"{name} cannot be {value!r}", f"write {right}")

"""Triton backend "onnxruntime" over the onnxruntime package, for where NVIDIA's native one is
missing.

Triton copies nothing in: this folder, with libtriton_python.so in ``python/`` beside it, *is* the
backend. It serves the same configs as the native backend: see ort_session.py for the parameters,
ort_graph.py for how a config is completed and checked, ort_requests.py for how a request is read
and answered, ort_jobs.py for how requests share a run.

This folder must not contain an ``__init__.py``: a package called onnxruntime would shadow the real
one.
"""

import json
import os
from pathlib import Path
from typing import Any

# Must be set before the import; otherwise 1.31 keeps a device id and sends telemetry.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort
import ort_cuda
from ort_batch import Runner
from ort_cpu import CPU
from ort_graph import (
    Config,
    Graph,
    ModelRefused,
    check_config,
    complete_config,
    drop_empty_reshape,
    is_complete,
)
from ort_idle import IdleCores, idle_threads
from ort_jobs import BatchError
from ort_lengths import merge_unlike_shapes
from ort_requests import responses
from ort_session import (
    REPOSITORY_VARIABLE,
    choose_providers,
    find_model_file,
    find_version_folder,
    open_session,
    operator_names,
    operators,
    read_only_session,
    wants_graphs,
    without_graphs,
)

try:
    import triton_python_backend_utils as pb_utils
except ImportError:  # outside Triton: unit tests set their own stand-in
    pb_utils = None


class TritonPythonModel:
    """One instance of one model: a process of its own, with its own session."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> object:
        config = auto_complete_model_config.as_dict()
        try:
            _complete(config)
            merge_unlike_shapes(config)
        except ModelRefused as refusal:
            raise pb_utils.TritonModelException(str(refusal)) from None
        return auto_complete_model_config

    def initialize(self, args: dict[str, str]) -> None:
        try:
            self._runner, served_by = _open(args)
        except ModelRefused as refusal:
            raise pb_utils.TritonModelException(str(refusal)) from None
        self._metric = _report(args, served_by)

    def execute(self, requests: list[object]) -> list[object]:
        with self._runner.answering():
            return responses(self._runner, requests)

    def finalize(self) -> None:
        del self._runner, self._metric


def _complete(config: Config) -> None:
    drop_empty_reshape(config)
    if is_complete(config):
        return  # like the native backend: a full config is checked at load, which saves a session
    folder = find_version_folder(config)
    if folder is None:
        raise ModelRefused(
            f"model '{config['name']}': config.pbtxt leaves inputs or outputs open, and there is "
            f"no version to read them from: set {REPOSITORY_VARIABLE} to the model repository "
            "before Triton starts, or write all inputs and outputs"
        )
    session = read_only_session(config, find_model_file(config, folder))
    complete_config(config, Graph.read(session))


def _open(args: dict[str, str]) -> tuple[Runner, dict[str, int]]:
    """The model, and the number of its operators on each provider.

    CUDA graphs that the config asks for are for speed alone: where one cannot be captured, or gives
    other values than an ordinary run, the model is served without them, and the log says so.
    """
    config = json.loads(args["model_config"])
    if wants_graphs(config):
        try:
            return _opened(args, config)
        except (ModelRefused, BatchError) as error:
            reason = str(error)
        config = without_graphs(config)
        runner, served_by = _opened(args, config)
        pb_utils.Logger.log_warn(
            f"model '{config['name']}' is served without CUDA graphs, because {reason}"
        )
        return runner, served_by
    return _opened(args, config)


def _opened(args: dict[str, str], config: Config) -> tuple[Runner, dict[str, int]]:
    # Triton names the kind with or without the prefix of the config file.
    kind = args["model_instance_kind"].removeprefix("KIND_")
    device_id = int(args["model_instance_device_id"])
    providers = choose_providers(config, kind, device_id, ort.get_available_providers())
    if providers[0][0] != CPU:
        ort_cuda.preload()
    file = find_model_file(config, Path(args["model_repository"]) / args["model_version"])

    def new_session() -> object:
        return open_session(config, file, providers, pb_utils.Logger.log_warn)

    session = new_session()
    graph = Graph.read(session)
    check_config(config, graph, pb_utils.Logger.log_warn)
    threads = idle_threads(config, file, operator_names(session)) if kind == "CPU" else 0
    alone = None
    if threads:  # what there is to warn of has been said for the first session
        faster = open_session(config, file, providers, lambda text: None, threads)
        alone = IdleCores(threads), faster
    runner = Runner(config, graph, session, alone)
    if kind == "CPU":
        runner.measure_run_cost()
    elif kind == "GPU" and wants_graphs(config):
        runner.capture_graphs(config, ("cuda", device_id))
    elif kind == "GPU":
        try:
            runner.fix_sizes(config, new_session)
        except BatchError as error:
            pb_utils.Logger.log_warn(f"not warmed up, the first requests will be slow: {error}")
    served_by = operators(session)
    if providers[0][0] != CPU and served_by.keys() == {CPU}:
        pb_utils.Logger.log_warn(
            f"model '{config['name']}': {providers[0][0]} runs none of its operators, so that all "
            "of it runs on the CPU: write kind: KIND_CPU, or serve another precision"
        )
    return runner, served_by


def _report(args: dict[str, str], served_by: dict[str, int]) -> Any:
    """Say in Triton's log and metrics which provider serves the model; returns the metrics, which
    exist as long as they are referred to."""
    model, version = args["model_name"], args["model_version"]
    counts = ", ".join(f"{count} operators on {name}" for name, count in served_by.items())
    pb_utils.Logger.log_info(f"model '{model}' version {version}: {counts}")
    try:
        family = pb_utils.MetricFamily(
            name="tidegate_engine_operators",
            description="Operators of the model's graph, by the provider that runs them",
            kind=pb_utils.MetricFamily.GAUGE,
        )
        metrics = []
        for provider, count in served_by.items():
            labels = {"model": model, "version": version, "provider": provider}
            metrics.append(family.Metric(labels=labels))
            metrics[-1].set(count)
    except pb_utils.TritonModelException as error:  # Triton was started without metrics
        pb_utils.Logger.log_warn(f"model '{model}': no metric says its provider: {error}")
        return None
    return family, metrics

"""Triton backend "onnxruntime" over the onnxruntime package, for where NVIDIA's native one is
missing.

Triton copies nothing in: this folder, with libtriton_python.so in ``python/`` beside it, *is* the
backend. It serves the same configs as the native backend: see ort_session.py for the parameters,
ort_graph.py for how a config is completed and checked, ort_batch.py for how requests share a run.

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
from ort_batch import BatchError, InvalidInput, Job, Runner, Tensors
from ort_graph import (
    Config,
    Graph,
    ModelRefused,
    check_config,
    complete_config,
    drop_empty_reshape,
    is_complete,
    merge_unlike_shapes,
)
from ort_session import (
    REPOSITORY_VARIABLE,
    choose_providers,
    find_model_file,
    find_version_folder,
    open_session,
    read_only_session,
)

try:
    import triton_python_backend_utils as pb_utils
except ImportError:  # outside Triton: unit tests set their own stand-in
    pb_utils = None

# Asking whether a request was cancelled is a round trip to the server process: 45 us measured on
# 2 cores, a third of the throughput of a trivial model. It pays only where a run costs more.
ASK_CANCELLED_ABOVE_S = 0.001


class TritonPythonModel:
    """One instance of one model: a process of its own, with its own session."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        config = auto_complete_model_config.as_dict()
        try:
            _complete(config)
            merge_unlike_shapes(config)
        except ModelRefused as refusal:
            raise pb_utils.TritonModelException(str(refusal)) from None
        return auto_complete_model_config

    def initialize(self, args: dict[str, str]) -> None:
        try:
            self._runner = _open(args)
        except ModelRefused as refusal:
            raise pb_utils.TritonModelException(str(refusal)) from None

    def execute(self, requests: list[Any]) -> list[Any]:
        jobs = [self._read(request) for request in requests]
        results = iter(self._runner.run([job for job in jobs if isinstance(job, Job)]))
        return [_respond(next(results) if isinstance(job, Job) else job) for job in jobs]

    def finalize(self) -> None:
        del self._runner

    def _read(self, request: Any) -> Any:
        """The request as a Job, or the TritonError to answer it with."""
        if self._runner.last_run_s > ASK_CANCELLED_ABOVE_S and request.is_cancelled():
            return pb_utils.TritonError("the request was cancelled", pb_utils.TritonError.CANCELLED)
        try:
            feeds = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            return self._runner.job(feeds, frozenset(request.requested_output_names()))
        except BatchError as error:
            return _triton_error(error)


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


def _open(args: dict[str, str]) -> Runner:
    config = json.loads(args["model_config"])
    # Triton names the kind with or without the prefix of the config file.
    kind = args["model_instance_kind"].removeprefix("KIND_")
    providers = choose_providers(
        config, kind, int(args["model_instance_device_id"]), ort.get_available_providers()
    )
    file = find_model_file(config, Path(args["model_repository"]) / args["model_version"])

    def new_session() -> Any:
        return open_session(config, file, providers, pb_utils.Logger.log_warn)

    session = new_session()
    graph = Graph.read(session)
    check_config(config, graph, pb_utils.Logger.log_warn)
    runner = Runner(config, graph, session)
    if kind == "GPU":
        try:
            runner.fix_sizes(config, new_session)
        except BatchError as error:
            pb_utils.Logger.log_warn(f"not warmed up, the first requests will be slow: {error}")
    return runner


def _respond(result: Tensors | BatchError | Any) -> Any:
    if isinstance(result, BatchError):
        result = _triton_error(result)
    if isinstance(result, pb_utils.TritonError):
        return pb_utils.InferenceResponse(output_tensors=[], error=result)
    return pb_utils.InferenceResponse(
        output_tensors=[pb_utils.Tensor(name, array) for name, array in result.items()]
    )


def _triton_error(error: BatchError) -> Any:
    if isinstance(error, InvalidInput):
        return pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
    # With its cause, including paths: those belong in the operator's log only.
    pb_utils.Logger.log_error(f"{error} ({error.__cause__!r})")
    return pb_utils.TritonError(str(error), pb_utils.TritonError.INTERNAL)

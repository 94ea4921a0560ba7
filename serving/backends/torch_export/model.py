"""Triton backend "torch_export": exported programs of torch, which AOTInductor compiled or torch
runs operator by operator.

This folder, with libtriton_python.so in ``python/`` beside it, and with ort_graph.py,
ort_jobs.py and ort_lengths.py of the backend onnxruntime in it, is the backend. It serves what
``tidegate convert --engine torch`` wrote: see pt2_stamp.py for what a file is bound to,
pt2_program.py for how it runs.

This folder must not contain an ``__init__.py``.
"""

import json
from pathlib import Path
from typing import Any

import torch
from ort_graph import ModelRefused, check_config, drop_empty_reshape, is_complete
from ort_jobs import BatchError, InvalidInput, Job, Tensors
from ort_lengths import merge_unlike_shapes
from pt2_program import (
    DEFAULT_FILE,
    ProgramRunner,
    choose_device,
    graph_of,
    load,
    open_stamp,
    set_up,
)

try:
    import triton_python_backend_utils as pb_utils
except ImportError:  # outside Triton: unit tests set their own stand-in
    pb_utils = None

# Asking whether a request was cancelled is a round trip to the server process: see the backend
# onnxruntime.
ASK_CANCELLED_ABOVE_S = 0.001
# By the device's type: what the metric says.
PROVIDERS = {"cpu": "torch_cpu", "cuda": "torch_cuda"}


class TritonPythonModel:
    """One instance of one model: a process of its own, with its own program."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> object:
        config = auto_complete_model_config.as_dict()
        try:
            drop_empty_reshape(config)
            if not is_complete(config):
                raise ModelRefused(
                    f"model '{config['name']}': config.pbtxt leaves inputs or outputs open: write "
                    "all of them, as tidegate convert --engine torch does"
                )
            merge_unlike_shapes(config)
        except ModelRefused as refusal:
            raise pb_utils.TritonModelException(str(refusal)) from None
        return auto_complete_model_config

    def initialize(self, args: dict[str, str]) -> None:
        try:
            self._runner, device, stamp = _open(args)
        except ModelRefused as refusal:
            raise pb_utils.TritonModelException(str(refusal)) from None
        self._metric = _report(args, device, stamp)

    def execute(self, requests: list[object]) -> list[object]:
        jobs = [self._read(request) for request in requests]
        results = iter(self._runner.run([job for job in jobs if isinstance(job, Job)]))
        return [_respond(next(results) if isinstance(job, Job) else job) for job in jobs]

    def finalize(self) -> None:
        del self._runner, self._metric

    def _read(self, request: Any) -> Any:
        """The request as a Job, or the TritonError to answer it with."""
        if self._runner.last_run_s > ASK_CANCELLED_ABOVE_S and request.is_cancelled():
            return pb_utils.TritonError("the request was cancelled", pb_utils.TritonError.CANCELLED)
        try:
            feeds = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            return self._runner.job(feeds, frozenset(request.requested_output_names()))
        except BatchError as error:
            return _triton_error(error)


def _open(args: dict[str, str]) -> tuple[ProgramRunner, torch.device, dict[str, Any]]:
    config = json.loads(args["model_config"])
    # Triton names the kind with or without the prefix of the config file.
    kind = args["model_instance_kind"].removeprefix("KIND_")
    device = choose_device(config, kind, int(args["model_instance_device_id"]))
    set_up(config)
    folder = Path(args["model_repository"]) / args["model_version"]
    file = folder / (config.get("default_model_filename") or DEFAULT_FILE)
    stamp = open_stamp(config, file, device)
    check_config(config, graph_of(stamp), pb_utils.Logger.log_warn)
    program = load(config, file, stamp, device)
    return ProgramRunner(config, stamp, program, device), device, stamp


def _report(args: dict[str, str], device: torch.device, stamp: dict[str, Any]) -> Any:
    """Say in Triton's log and metrics what serves the model; returns the metrics, which exist as
    long as they are referred to."""
    model, version = args["model_name"], args["model_version"]
    how = "compiled by AOTInductor" if stamp["is_compiled"] else "run operator by operator"
    provider, operators = PROVIDERS[device.type], stamp["operators"]
    pb_utils.Logger.log_info(
        f"model '{model}' version {version}: {operators} operators on {provider}, {how}"
    )
    try:
        family = pb_utils.MetricFamily(
            name="tidegate_engine_operators",
            description="Operators of the model's graph, by the provider that runs them",
            kind=pb_utils.MetricFamily.GAUGE,
        )
        labels = {"model": model, "version": version, "provider": provider}
        metric = family.Metric(labels=labels)
        metric.set(operators)
    except pb_utils.TritonModelException as error:  # Triton was started without metrics
        pb_utils.Logger.log_warn(f"model '{model}': no metric says its provider: {error}")
        return None
    return family, metric


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

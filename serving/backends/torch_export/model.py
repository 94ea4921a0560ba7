"""Triton backend "torch_export": exported programs of torch, which AOTInductor compiled or torch
runs operator by operator.

This folder, with libtriton_python.so in ``python/`` beside it, and with the files of the backend
onnxruntime that both use in it (serving/triton/backend_directory.py), is the backend. It serves
what ``tidegate convert --engine torch`` wrote: see pt2_stamp.py for what a file is bound to,
pt2_program.py for how it runs.

This folder must not contain an ``__init__.py``.
"""

import json
from pathlib import Path
from typing import Any

import torch
from ort_graph import ModelRefused, check_config, drop_empty_reshape, is_complete
from ort_lengths import merge_unlike_shapes
from ort_requests import responses
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
        return responses(self._runner, requests)

    def finalize(self) -> None:
        del self._runner, self._metric


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

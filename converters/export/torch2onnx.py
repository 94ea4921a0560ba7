"""torch -> ONNX, with a dynamic batch axis (and, for text, a dynamic sequence axis)."""

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx
import torch

from converters.errors import ExportFailed

OPSET = 18


def export_token_model(
    module: torch.nn.Module, input_names: Sequence[str], output_name: str, target: Path
) -> None:
    """Write ``target``: inputs INT64 [batch, length], one output; ExportFailed with the cause.

    An output named ``embedding`` breaks the exporter ("Duplicate definition of name").
    """
    _export(module, token_example(input_names), (0, 1), output_name, target)


def token_example(input_names: Sequence[str]) -> dict[str, torch.Tensor]:
    """An example of each input, INT64 [2, 9]: the exporter would fix a size of one as a
    constant."""
    return {name: torch.ones(2, 9, dtype=torch.int64) for name in input_names}


def export_image_model(
    module: torch.nn.Module,
    input_name: str,
    size: tuple[int, int, int],
    output_name: str,
    target: Path,
) -> None:
    """Write ``target``: input FP32 [batch, channels, height, width], one output; ExportFailed
    with the cause. ``size`` is (channels, height, width)."""
    example = torch.zeros(2, *size)
    _export(module, {input_name: example}, (0,), output_name, target)


def _export(
    module: torch.nn.Module,
    example: Mapping[str, torch.Tensor],
    dynamic: Sequence[int],
    output_name: str,
    target: Path,
) -> None:
    """``dynamic`` are the axes, the same for every input, whose length may vary."""
    axes = dict.fromkeys(dynamic, torch.export.Dim.DYNAMIC)
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                tuple(example.values()),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(example),
                output_names=[output_name],
                dynamic_shapes=tuple(axes for _ in example),
                verbose=False,
            )
    except Exception as error:  # torch raises many types; all of them mean the same to a user
        # The exporter buries the reason in a page of advice.
        plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error.__cause__ or error))
        reason = " ".join(plain.split())[:300]
        raise ExportFailed(f"torch could not export the model: {reason}") from error
    if program is None:
        raise ExportFailed("torch exported nothing")
    program.save(str(target), external_data=False)
    _check(target, list(example), dynamic)


def _check(target: Path, input_names: Sequence[str], dynamic: Sequence[int]) -> None:
    model = onnx.load(target)
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # InferenceError and ValidationError share no base class
        reason = " ".join(str(error).split())[:300]
        raise ExportFailed(f"torch exported a graph that contradicts itself: {reason}") from error
    for tensor in model.graph.input:
        if tensor.name not in input_names:
            continue
        axes = tensor.type.tensor_type.shape.dim
        fixed = [axis for axis in dynamic if axes[axis].dim_value]
        if fixed:
            raise ExportFailed(f"input {tensor.name} has fixed axes {fixed} after the export")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # The exporter prints its stages and warns about its own internals.
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        # It logs that torchvision, which nothing here needs, is missing.
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        yield

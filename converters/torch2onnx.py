"""torch -> ONNX, with a dynamic batch axis and a dynamic sequence axis."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
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
    # Two rows of two lengths: a size of one would be baked in as a constant.
    example = tuple(torch.ones(2, 9, dtype=torch.int64) for _ in input_names)
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                example,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(input_names),
                output_names=[output_name],
                dynamic_shapes=tuple(axes for _ in input_names),
                verbose=False,
            )
    except Exception as error:  # torch raises many kinds; all of them mean the same to a user
        raise ExportFailed(f"torch could not export the model: {error}") from error
    if program is None:
        raise ExportFailed("torch exported nothing")
    program.save(str(target), external_data=False)
    _check(target, input_names)


def _check(target: Path, input_names: Sequence[str]) -> None:
    model = onnx.load(target)
    onnx.checker.check_model(model, full_check=True)
    for tensor in model.graph.input:
        fixed = [d.dim_value for d in tensor.type.tensor_type.shape.dim if d.dim_value]
        if tensor.name in input_names and fixed:
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
        # It logs that torchvision is missing, which nothing here needs.
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        yield

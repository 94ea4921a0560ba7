"""A ``.pt2`` file behind the interface of ``proof.runner``, the counterpart of ONNX Runtime's
session: the same proof measures both."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export.passes import move_to_device_pass

from converters.export.torch2onnx import _quiet
from converters.torch_export.stamp import Stamp, full_fp32


class TorchRunner:
    """One loaded program, on the device of its stamp."""

    def __init__(self, file: Path) -> None:
        full_fp32()
        self._stamp = Stamp.read(file)
        self.inputs = [tensor["name"] for tensor in self._stamp.inputs]
        self.outputs = [tensor["name"] for tensor in self._stamp.outputs]
        with _quiet():
            self._program = _load(file, self._stamp)

    def run(self, names: Sequence[str] | None, feed: Mapping[str, Any]) -> list[Any]:
        """The outputs for this batch, as numpy arrays; whatever torch raises."""
        arrays = [np.ascontiguousarray(feed[name]) for name in self.inputs]
        tensors = [torch.from_numpy(array).to(self._stamp.device) for array in arrays]
        with torch.inference_mode():
            result = self._program(*tensors)
        outputs = [result] if isinstance(result, torch.Tensor) else list(result)
        by_name = dict(zip(self.outputs, outputs, strict=True))
        return [by_name[name].cpu().numpy() for name in names or self.outputs]


def _load(file: Path, stamp: Stamp) -> Any:
    if stamp.is_compiled:
        return torch._inductor.aoti_load_package(str(file))
    program = torch.export.load(file)
    if stamp.device != "cpu":
        program = move_to_device_pass(program, stamp.device)
    return program.module()

"""A ``.pt2`` file as a callable, and the requests that it runs.

AOTInductor's code checks nothing: with a mask shorter than the ids it reads beyond the mask's end.
So every run is checked here against the shapes that the program was exported for.
"""

import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ort_graph import Config, Graph, GraphTensor, ModelRefused
from ort_jobs import BatchError, InvalidInput, JobRunner, RunFailed, Tensors, symbol_conflict
from pt2_stamp import Stamp, StampMissing, read_stamp, why_not_here
from torch.export.passes import move_to_device_pass

DEFAULT_FILE = "model.pt2"
THREADS = "intra_op_thread_count"
# AOTInductor unpacks its library into a folder of this name under TMPDIR.
UNPACKED = "aotinductor_"
BLAMES_INPUT = re.compile("index out of (range|bounds)")
Program = Callable[..., Any]


def choose_device(config: Config, kind: str, device_id: int) -> torch.device:
    """Where Triton's instance kind (CPU, GPU, AUTO or MODEL) says; ModelRefused where CUDA does not
    start, with torch's reason."""
    if kind != "GPU":
        return torch.device("cpu")
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (AssertionError, RuntimeError) as error:
        raise ModelRefused(
            f"model '{config['name']}': instance_group says KIND_GPU, and CUDA does not start in "
            f"torch {torch.__version__}: {_first_line(error)}. Correct that, or write kind: "
            "KIND_CPU"
        ) from error
    return torch.device("cuda", device_id)


def set_up(config: Config) -> None:
    """The number of threads that the config says; FP32 with all its bits."""
    text = config.get("parameters", {}).get(THREADS, {}).get("string_value", "0")
    try:
        threads = int(text)
    except ValueError:
        raise ModelRefused(
            f"model '{config['name']}': parameter '{THREADS}' cannot be '{text}': write a number "
            "of threads"
        ) from None
    if threads > 0:
        torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def open_stamp(config: Config, file: Path, device: torch.device) -> Stamp:
    """The stamp of a file that fits this machine; ModelRefused, with the reason, of one that does
    not."""
    model = f"model '{config['name']}'"
    if not file.is_file():
        raise ModelRefused(
            f"{model}: there is no {file}: it is written where tidegate convert --engine torch "
            f"runs on a machine with this device ({device.type})"
        )
    try:
        stamp = read_stamp(file)
    except StampMissing as error:
        raise ModelRefused(f"{model}: {error}") from error
    capability = ""
    if device.type == "cuda":
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
    reason = why_not_here(stamp, device.type, torch.__version__, capability)
    if reason:
        raise ModelRefused(f"{model}: {file.name} cannot run here: {reason}")
    return stamp


def graph_of(stamp: Stamp) -> Graph:
    """The program's tensors."""

    def tensors(side: str) -> dict[str, GraphTensor]:
        return {
            entry["name"]: GraphTensor(entry["name"], entry["type"], tuple(entry["axes"]))
            for entry in stamp[side]
        }

    return Graph(tensors("inputs"), {}, tensors("outputs"))


def load(config: Config, file: Path, stamp: Stamp, device: torch.device) -> Program:
    """The program; ModelRefused if torch cannot load it."""
    try:
        if stamp["is_compiled"]:
            index = -1 if device.index is None else device.index
            program: Program = torch._inductor.aoti_load_package(str(file), device_index=index)
            _remove_unpacked()
            return program
        exported = torch.export.load(file)
        if device.type != "cpu":
            exported = move_to_device_pass(exported, device)
        return exported.module()
    except Exception as error:  # torch's errors share no base class
        raise ModelRefused(
            f"model '{config['name']}': torch {torch.__version__} cannot load {file}: "
            f"{_first_line(error)}"
        ) from error


class ProgramRunner(JobRunner):
    """One program with its model's config."""

    def __init__(
        self, config: Config, stamp: Stamp, program: Program, device: torch.device
    ) -> None:
        super().__init__(config, graph_of(stamp))
        self._program, self._device = program, device
        self._names = [entry["name"] for entry in stamp["outputs"]]
        self._longest: Mapping[str, int] = stamp["longest"]

    def _run_once(self, feeds: Tensors, requested: frozenset[str], rows: int) -> Tensors:
        self._require_shapes(feeds)
        if self._batched and not rows:
            # Programs are exported for one row or more.
            ones = {
                name: np.zeros((1, *array.shape[1:]), array.dtype) for name, array in feeds.items()
            }
            return {name: array[:0] for name, array in self._run_once(ones, requested, 1).items()}
        started = time.perf_counter()
        try:
            with torch.inference_mode():
                tensors = [self._tensor(name, feeds[name]) for name in self._inputs]
                result = self._program(*tensors)
                outputs = [result] if isinstance(result, torch.Tensor) else result
                arrays = [output.cpu().numpy() for output in outputs]
        except Exception as error:  # torch's errors share no base class
            raise self._explain(error, feeds) from error
        self.last_run_s = time.perf_counter() - started
        return {
            name: self._checked(name, array, rows)
            for name, array in zip(self._names, arrays, strict=True)
            if name in requested
        }

    def _tensor(self, name: str, array: Any) -> torch.Tensor:
        # Triton's arrays may be read-only, and torch has only tensors that can be written.
        array = np.require(array, self._inputs[name].dtype, ("C", "W"))
        return torch.from_numpy(array).to(self._device)

    def _require_shapes(self, feeds: Tensors) -> None:
        missing = [name for name in self._inputs if name not in feeds]
        if missing:
            raise InvalidInput(self._model, f"'{missing[0]}'", "it is missing", "send it")
        conflict = symbol_conflict(self._inputs, feeds)
        if conflict:
            raise InvalidInput(self._model, *conflict)
        for name, array in feeds.items():
            for axis, length in zip(self._inputs[name].axes, array.shape, strict=True):
                most = self._longest.get(axis) if isinstance(axis, str) else None
                if most is not None and length > most:
                    raise InvalidInput(
                        self._model,
                        f"'{name}'",
                        f"an axis has length {length}, and the model takes {most} at most",
                        "send less",
                    )

    def _explain(self, error: Exception, feeds: Tensors) -> BatchError:
        reason = _first_line(error)
        if BLAMES_INPUT.search(reason):
            names = " or ".join(f"'{name}'" for name in feeds)
            return InvalidInput(self._model, names, reason, "send values that the model takes")
        return RunFailed(f"model '{self._model}': torch failed: {reason}")


def _remove_unpacked() -> None:
    """Remove the library that AOTInductor unpacked and this process has loaded: it would do so only
    as it ends, and leave it if it is killed."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        path = Path(line.partition("/")[1] + line.partition("/")[2])
        folders = [folder for folder in path.parents if folder.name.startswith(UNPACKED)]
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def _first_line(error: Exception) -> str:
    """torch's own message without the stack of its C++, nor file names, which clients must not
    see."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r"(?<![\w.])/[^\s'\",;)]+", "", line).strip()[:300]

"""``--engine tensorrt``: the same pipeline with NAME_trt, a TensorRT plan, in place of NAME_onnx.

NAME_trt's version folder holds the plan and, beside it, the ONNX graph that it was built from: its
``config.pbtxt`` serves the graph on any machine, ``configs/tensorrt.pbtxt`` the plan.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from modelspec.hardware import TENSORRT, engine_of, with_plan
from modelspec.layout import PLAN_FILE
from serving.installation import find_triton
from tidegate.published import engine_folder, pinned

if TYPE_CHECKING:
    from tidegate.pipelines import Built

ENGINES = ("onnx", TENSORRT)
Say = Callable[[str], None]


def on_engine(built: "Built", engine: str, say: Say) -> "Built":
    """``built`` on the engine that is wished; as it is, and the reason said, where this machine
    cannot have that. Raises ConversionError when the engine is built and fails its proof."""
    if engine != TENSORRT or built.converted is None:
        return built
    reason = why_not_here()
    if reason:
        say(f"{reason}. The ONNX engine stays served")
        return built
    from converters.engine import build_engine

    plan = build_engine(built.converted, engine_of(built.pipeline), say)
    return replace(built, pipeline=with_plan(built.pipeline), plan=plan)


def why_not_here() -> str:
    """What is missing for TensorRT on this machine, in one line; "" when nothing is."""
    from converters.engine import why_not_here as nothing_to_build_with

    reason = nothing_to_build_with()
    if not reason and not (find_triton().backends / TENSORRT).is_dir():
        reason = (
            "this Triton has no tensorrt backend: run in NVIDIA's container (nvcr.io/nvidia/"
            "tritonserver), whose tritonserver is taken when it is on PATH (docs/gpu.md)"
        )
    return reason


def is_on(repository: Path, name: str, engine: str, say: Say) -> bool:
    """Whether what is published runs on this engine; a plan of another machine does not count, and
    where there can be none, whatever is published is left as it is."""
    has_plan = any(model.startswith(f"{name}_trt") for model in pinned(repository, name))
    if engine != TENSORRT:
        return not has_plan
    reason = why_not_here()
    if reason:
        say(f"{reason}. What is published stays served")
        return True
    if not has_plan:
        return False
    from converters.engine import why_not_of_here

    reason = why_not_of_here(engine_folder(repository, name))
    if reason:
        say(f"{name}: the engine must be built again: {reason}")
    return not reason


def proved_profiles(repository: Path, name: str, say: Say) -> list[str | None]:
    """The config profiles of the configs under which what is published can be proved on this
    machine: the main one, and that of its plan. The reason is said where a plan cannot."""
    if not (engine_folder(repository, name) / PLAN_FILE).is_file():
        return [None]
    reason = why_not_here()
    if reason:
        say(f"{reason}. The plan is not proved, only the graph beside it")
        return [None]
    return [None, TENSORRT]

"""``--engine tensorrt``: the same pipeline with NAME_trt, a TensorRT plan, in place of NAME_onnx.

NAME_trt's version folder holds the plan and, beside it, the ONNX graph that it was built from: its
``config.pbtxt`` serves the graph on any machine, ``configs/tensorrt.pbtxt`` the plan.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from modelspec.hardware import TENSORRT, VLLM, engine_of, with_plan
from modelspec.layout import PLAN_FILE
from modelspec.names import Role, member_name
from serving.triton.installation import find_triton
from tidegate.app.progress import Progress
from tidegate.app.published import engine_file

if TYPE_CHECKING:
    from serving.repository.model_repository import ModelRepository
    from tidegate.app.pipelines import Built

ENGINES = ("onnx", TENSORRT, VLLM)


def on_engine(built: "Built", engine: str, report: Progress) -> "Built":
    """``built`` on the requested engine; unchanged, and the reason reported, where this machine
    cannot build it. Raises ConversionError when the engine is built but fails its proof."""
    if engine != TENSORRT or built.converted is None:
        return built
    reason = why_not_here()
    if reason:
        report(f"{reason}. The ONNX engine is served instead")
        return built
    from converters.tensorrt.engine import build_engine

    plan = build_engine(built.converted, engine_of(built.pipeline), report)
    return replace(built, pipeline=with_plan(built.pipeline), plan=plan)


def why_not_here() -> str:
    """Why TensorRT is not available on this machine, in one line; "" when it is."""
    from converters.tensorrt import engine

    reason = engine.why_not_here()
    if not reason and not (find_triton().backends / TENSORRT).is_dir():
        reason = (
            "this Triton has no tensorrt backend: run in NVIDIA's container (nvcr.io/nvidia/"
            "tritonserver), whose tritonserver is used when it is on PATH (docs/gpu.md)"
        )
    return reason


def is_on(repository: "ModelRepository", name: str, engine: str, report: Progress) -> bool:
    """Whether the published pipeline runs on this engine. A plan of another machine does not count;
    where no plan can be built, whatever is published counts."""
    has_plan = any(
        model.startswith(member_name(name, Role.PLAN)) for model in repository.pinned_members(name)
    )
    if engine != TENSORRT:
        return not has_plan
    reason = why_not_here()
    if reason:
        report(f"{reason}. The published pipeline stays as it is")
        return True
    if not has_plan:
        return False
    from converters.tensorrt.engine import unavailable_reason

    reason = unavailable_reason(engine_file(repository, name).parent)
    if reason:
        report(f"{name}: the engine must be rebuilt: {reason}")
    return not reason


def proved_profiles(repository: "ModelRepository", name: str, report: Progress) -> list[str | None]:
    """The config profiles with which the published pipeline can be proved on this machine: None for
    the main config, and that of its plan. Reports the reason where a plan cannot be proved."""
    if not engine_file(repository, name).with_name(PLAN_FILE).is_file():
        return [None]
    reason = why_not_here()
    if reason:
        report(f"{reason}. Only the graph is proved, not the plan beside it")
        return [None]
    return [None, TENSORRT]

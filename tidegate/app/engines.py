"""``--engine tensorrt`` and ``--engine torch``: the same pipeline with another engine in place of
NAME_onnx.

NAME_trt's version folder holds a TensorRT plan and, beside it, the ONNX graph that it was built
from: its ``config.pbtxt`` serves the graph on any machine, ``configs/tensorrt.pbtxt`` the plan.
NAME_torch's holds a program for the CPU, which its ``config.pbtxt`` serves, one for the GPU where
there was one (``configs/gpu.pbtxt``), and the ONNX graph of the same original.
"""

from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from modelspec.hardware import GPU, TENSORRT, TORCH, VLLM, engine_of, with_plan, with_program
from modelspec.layout import GPU_PROGRAM_FILE, PLAN_FILE, PROGRAM_FILE
from modelspec.names import Role, role_of
from serving.triton.installation import find_triton
from tidegate.app.progress import Progress
from tidegate.app.published import engine_file

if TYPE_CHECKING:
    # The files of a Triton backend are top-level modules in Triton, and for mypy.
    import pt2_stamp

    from converters.proof.checks import Check, Proof
    from converters.proof.reference import Reference
    from converters.task import Task
    from serving.repository.model_repository import ModelRepository
    from tidegate.app.pipelines import Built
else:
    from serving.backends.torch_export import pt2_stamp

SAME_PROGRAM = "the program is the one that was proved when it was published"
ONNX = "onnx"
ENGINES = (ONNX, TENSORRT, TORCH, VLLM)


def require_engine(task: "Task", precision: str, engine: str) -> None:
    """ConversionError where the model cannot have this engine on any machine: before its
    conversion, which takes minutes."""
    if engine == TORCH:
        from converters.torch_export.engine import require_torch_module

        require_torch_module(task, precision)


def on_engine(built: "Built", engine: str, report: Progress) -> "Built":
    """``built`` on the requested engine; unchanged, and the reason reported, where this machine
    cannot build it. Raises ConversionError when the engine is built but fails its proof."""
    if built.converted is None:
        return built
    if engine == TORCH:
        from converters.torch_export.engine import build_program

        program = build_program(built.converted, report)
        return replace(built, pipeline=with_program(built.pipeline), engine=program)
    if engine != TENSORRT:
        return built
    reason = why_not_here()
    if reason:
        report(f"{reason}. The ONNX engine is served instead")
        return built
    from converters.tensorrt.engine import build_engine

    plan = build_engine(built.converted, engine_of(built.pipeline), report)
    return replace(built, pipeline=with_plan(built.pipeline), engine=plan)


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
    """Whether the published pipeline runs on this engine. A plan or a program of another machine
    does not count; where no plan can be built, whatever is published counts."""
    roles = {role_of(name, member) for member in repository.pinned_members(name)}
    if engine == TORCH:
        return Role.PROGRAM in roles and _fits(repository, name, report)
    if engine != TENSORRT:
        return not roles & {Role.PLAN, Role.PROGRAM}
    reason = why_not_here()
    if reason:
        report(f"{reason}. The published pipeline stays as it is")
        return True
    if Role.PLAN not in roles:
        return False
    from converters.tensorrt.engine import unavailable_reason

    reason = unavailable_reason(engine_file(repository, name).parent)
    if reason:
        report(f"{name}: the engine must be rebuilt: {reason}")
    return not reason


def _fits(repository: "ModelRepository", name: str, report: Progress) -> bool:
    """Whether the published programs are for this machine; reports the reason if they are not."""
    from converters.torch_export.engine import FILES, devices

    folder = engine_file(repository, name).parent
    missing = [device for device in devices() if not (folder / FILES[device]).is_file()]
    reason = f"there is none for {', '.join(missing)}" if missing else ""
    if not reason:
        try:
            stamp = pt2_stamp.read_stamp(folder / PROGRAM_FILE)
            reason = pt2_stamp.why_not_here(stamp, "cpu", version("torch"))
        except pt2_stamp.StampMissing as error:
            reason = str(error)
    if reason:
        report(f"{name}: the engine must be rebuilt: {reason}")
    return not reason


def prove_programs(
    task: "Task", folder: Path, reference: "Reference", recorded: Mapping[str, str]
) -> list["Proof"]:
    """The proofs of the programs for torch in an engine's version folder, by the checks of the
    graph, and that they are the files whose SHA-256 was ``recorded``; [] where there are none. That
    of the GPU only where torch finds one."""
    if not (folder / PROGRAM_FILE).is_file():
        return []
    from converters.conversion import prove_graph
    from converters.torch_export.engine import FILES, devices, name_of
    from converters.torch_export.runner import TorchRunner

    files = {device: folder / FILES[device] for device in devices()}
    proofs = []
    for device, file in files.items():
        if file.is_file():
            proof = prove_graph(task, file, reference, TorchRunner, name_of(device))
            same = same_file(SAME_PROGRAM, recorded.get(file.name, ""), file)
            proofs.append(replace(proof, checks=(*proof.checks, same)))
    return proofs


def same_file(name: str, recorded: str, file: Path) -> "Check":
    """Whether the file is the one that was proved when it was published: this also finds a change
    that hides within a tolerance."""
    from converters.cache import files_sha256
    from converters.proof.checks import at_most

    actual = files_sha256([file])
    detail = f"SHA-256 {actual[:12]}..., proof.json says {recorded[:12]}...: convert it again"
    return at_most(name, actual != recorded, 0, detail if actual != recorded else "")


def proved_profiles(repository: "ModelRepository", name: str, report: Progress) -> list[str | None]:
    """The config profiles with which the published pipeline can be proved on this machine: None for
    the main config, and that of its plan or of its program for the GPU. Reports the reason where
    one cannot be proved."""
    folder = engine_file(repository, name).parent
    if (folder / GPU_PROGRAM_FILE).is_file():
        from converters.torch_export.engine import devices

        if "cuda" in devices():
            return [None, GPU]
        report("torch finds no GPU here. Only the program for the CPU is proved")
        return [None]
    if not (folder / PLAN_FILE).is_file():
        return [None]
    reason = why_not_here()
    if reason:
        report(f"{reason}. Only the graph is proved, not the plan beside it")
        return [None]
    return [None, TENSORRT]

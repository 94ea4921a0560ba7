"""Which configs Triton reads: the main ones, or ``configs/NAME.pbtxt`` where a model has one."""

from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from modelspec.hardware import GPU
from serving.errors import ServingError
from serving.repository.configs import TUNED
from serving.repository.model_repository import ModelRepository
from serving.triton.installation import find_triton
from serving.tuning.journal import machine
from serving.tuning.outcome import is_of_another_engine, tuned_measurement

AUTO, DEFAULT = "auto", "default"


@cache
def usable_gpu() -> tuple[str, str]:
    """The name of the GPU that this machine's Triton can serve ONNX engines on, or '' and what is
    missing ('' too where there is no GPU)."""
    from converters.errors import EngineUnavailable
    from converters.tensorrt.available import find_gpu

    try:
        gpu = find_gpu().name
    except EngineUnavailable:
        return "", ""
    if (find_triton().backends / "onnxruntime").is_dir():
        return gpu, ""
    try:
        version("onnxruntime-gpu")
    except PackageNotFoundError:
        return "", (
            f"{gpu} is not used, because ONNX Runtime is installed without CUDA: pip uninstall "
            "onnxruntime, then pip install 'onnxruntime-gpu[cuda,cudnn]' (docs/gpu.md)"
        )
    return gpu, ""


def automatic() -> str:
    """The config profile that ``auto`` looks for on this machine."""
    gpu, _ = usable_gpu()
    return GPU if gpu else TUNED


def config_name(
    repository: ModelRepository, requested: str, report: Callable[[str], None]
) -> str | None:
    """The name for ``--model-config-name``; None for the main configs.

    ``auto`` means ``gpu`` on a machine with a GPU that Triton can use, else ``tuned`` where
    something was tuned. Raises ServingError when no model has the requested config profile.
    """
    if requested == DEFAULT:
        return None
    names = repository.models_by_profile()
    name = requested
    if requested == AUTO:
        gpu, missing = usable_gpu()
        if missing:
            report(missing)
        name = automatic()
        if name not in names:
            return None
        if gpu:
            of_cpu = f" instead of {TUNED}, which was measured without it" if TUNED in names else ""
            report(f"using {gpu}{of_cpu}")
    if name not in names:
        available = ", ".join([DEFAULT, *sorted(names)])
        raise ServingError(f"no model has configs/{name}.pbtxt: choose --config from {available}")
    measurements = "; ".join(tuned_lines(repository)) if name == TUNED else ""
    models = measurements or f"of {', '.join(names[name])}"
    report(f"configs {name}: {models} (--config default turns them off)")
    return name


def tuned_lines(repository: ModelRepository) -> Iterator[str]:
    """One line per tuned pipeline."""
    for name in repository.public_models():
        if repository.is_published(name) and (line := tuned_line(repository, name)):
            yield line


def tuned_line(repository: ModelRepository, name: str) -> str:
    """The measurement of a tuned pipeline, and whether it still holds; '' if it was not tuned."""
    measurement = tuned_measurement(repository, name)
    if not measurement:
        return ""
    doubts = []
    if is_of_another_engine(repository, name, measurement):
        doubts.append("with a different engine or step than the active one")
    if measurement["machine"] != machine():
        doubts.append("on another machine")
    doubt = f", {' and '.join(doubts)}: tidegate optimize {name} measures again" if doubts else ""
    return (
        f"{name} {measurement['ratio']:.2f}x the default at {measurement['connections']} "
        f"connections, measured {measurement['made_at'][:10]}{doubt}"
    )

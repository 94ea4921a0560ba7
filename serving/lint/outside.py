"""What a config needs from outside: Python environments, batching libraries, agents."""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

from serving.lint.finding import Finding, error
from serving.lint.reading import Model

ENVIRONMENT = "EXECUTION_ENV_PATH"
CPU_ONLY = "FORCE_CPU_ONLY_INPUT_TENSORS"
STRATEGY = "TRITON_BATCH_STRATEGY_PATH"
MODEL_DIRECTORY = "$$TRITON_MODEL_DIRECTORY"
# Where NVIDIA's container keeps its repository agents; the wheel has none.
AGENTS = Path("/opt/tritonserver/repoagents")


def check(model: Model) -> Iterator[Finding]:
    if model.is_python_based:
        yield from _environment(model)
        if (value := model.parameters.get(CPU_ONLY, "no")) not in ("yes", "no"):
            yield error(
                "parameter-bad",
                model.location,
                f"parameter {CPU_ONLY} is {value!r}",
                'write "yes" or "no"',
            )
    if STRATEGY in model.parameters and not model.is_ensemble:
        yield from _strategy(model, model.parameters[STRATEGY])
    if model.config.HasField("model_repository_agents"):
        yield from _agents(model)


def _environment(model: Model) -> Iterator[Finding]:
    written = model.parameters.get(ENVIRONMENT, "")
    if not written:
        return
    path = Path(os.path.normpath(written.replace(MODEL_DIRECTORY, str(model.folder.absolute()), 1)))
    base = "" if path.is_absolute() else " (relative to the folder that the server is started in)"
    if not path.exists():
        message = f"{ENVIRONMENT} names {written}, which does not exist{base}"
    elif path.is_dir() and not (path / "bin" / "activate").exists():
        message = f"{ENVIRONMENT} names the folder {written}, which has no bin/activate"
    elif path.is_file() and not tarfile.is_tarfile(path):
        message = f"{ENVIRONMENT} names {written}, which is not a tar archive"
    else:
        return
    yield error(
        "environment-bad",
        model.location,
        message,
        f"put a conda-pack archive there ({MODEL_DIRECTORY} is the model's folder), or remove the "
        "parameter to use the server's own Python",
    )


def _strategy(model: Model, path: str) -> Iterator[Finding]:
    if model.config.HasField("sequence_batching"):
        yield error(
            "parameter-bad",
            model.location,
            f"parameter {STRATEGY} cannot be combined with sequence_batching",
            "remove one of them",
        )
    elif not Path(path).exists():
        yield error(
            "parameter-bad", model.location, f"{STRATEGY} {path} does not exist", "correct the path"
        )


def _agents(model: Model) -> Iterator[Finding]:
    agents = model.config.model_repository_agents.agents
    if not agents:
        yield error(
            "agent-missing",
            model.location,
            "has model_repository_agents without agents, and Triton crashes when it loads that",
            "remove it",
        )
    for agent in agents:
        if not (AGENTS / agent.name).is_dir():
            yield error(
                "agent-missing",
                model.location,
                f"needs the repository agent {agent.name!r}, which this machine's Triton lacks",
                f"install it under {AGENTS}, or remove model_repository_agents",
            )

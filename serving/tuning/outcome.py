"""What a search writes: ``configs/tuned.pbtxt`` of each model that changes, with the measurement it
came from, and, on request, the same serving parameters in the main configs."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from tritonclient.grpc.model_config_pb2 import ModelConfig

from modelspec.parameters import TUNED_PARAMETER
from serving.errors import ServingError
from serving.publish.deployment import Deployment
from serving.publish.recovery import recover
from serving.repository.configs import TUNED, policy_versions, synced_with
from serving.repository.model_repository import ModelRepository
from serving.tuning.journal import engine_files
from serving.tuning.setting import applied, setting_of
from serving.tuning.trial import Trial
from serving.tuning.tune import Result


def measurement(result: Result, winner: Trial) -> dict[str, Any]:
    """The measurement as it is stored in the config: figures are requests/s and milliseconds."""
    context = {k: result.context[k] for k in ("machine", "tools", "connections", "files")}
    return {
        "pipeline": result.name,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        **context,
        "p99_bound_ms": round(winner.bound_ms(result.p99_ms), 2),
        "p99_bound": "given" if result.p99_ms else "the default's own p99 and a tenth",
        "setting": winner.setting.as_dict(),
        "default_setting": result.context["default"],
        "ratio": winner.ratio,
        "default": asdict(winner.default) if winner.default else {},
        "tuned": asdict(winner.tuned) if winner.tuned else {},
    }


def write_tuned(deployment: Deployment, result: Result) -> list[str]:
    """Write the winner's configs and remove those of an earlier search. Returns the paths written,
    relative to the repository. ServingError if something was published during the search."""
    repository = deployment.repository
    if not (result.finals or result.is_complete):
        return []  # the budget ended before there was any result
    with repository.lock(f"tune {result.name}"):
        recover(deployment)
        configs = _current(repository, result)
        changed = _changed(configs, result, result.winner) if result.winner else {}
        for model, main in configs.items():
            if model in changed:
                repository.write_profile(model, TUNED, synced_with(main, changed[model]))
            else:
                repository.remove_profile(model, TUNED)
    return [f"{model}/configs/{TUNED}.pbtxt" for model in changed]


def commit(deployment: Deployment, result: Result) -> list[str]:
    """Write the winner's serving parameters into the main configs, and reload them on the servers.
    Returns the models that changed. If the pipeline then fails its golden sample, the old configs
    are restored, and ServingError says so.

    The batch size stays: it is what clients may send, and belongs to a version.
    """
    if result.winner is None:
        return []
    default_batch = result.context["default"].get("max_batch")
    setting = replace(result.winner.setting, max_batch=default_batch)
    with deployment.repository.lock(f"commit the serving parameters of {result.name}"):
        recover(deployment)
        before = _current(deployment.repository, result)
        changed = _changed(before, result, replace(result.winner, setting=setting))
        try:
            _apply(deployment, changed)
            for replica in deployment.replicas:
                replica.require_golden(result.name, before[result.name])
        except BaseException:
            _apply(deployment, {model: before[model] for model in changed})
            raise
    return list(changed)


def tuned_measurement(repository: ModelRepository, name: str) -> dict[str, Any]:
    """The measurement in the pipeline's ``configs/tuned.pbtxt``; {} if there is none."""
    for model in (*repository.pinned_members(name), name):
        profile = repository.profiles(model).get(TUNED)
        if profile and TUNED_PARAMETER in profile.parameters:
            measured = json.loads(profile.parameters[TUNED_PARAMETER].string_value)
            return measured if isinstance(measured, dict) else {}
    return {}


def is_of_another_engine(
    repository: ModelRepository, name: str, measured: Mapping[str, object]
) -> bool:
    """Whether the active version's files differ from those of the measurement."""
    versions = {**repository.pinned_members(name), name: repository.active_version(name)}
    return bool(measured.get("files") != engine_files(repository, versions))


def _current(repository: ModelRepository, result: Result) -> dict[str, ModelConfig]:
    """The pipeline's main configs now, members first."""
    name = result.name
    versions = {**repository.pinned_members(name), name: repository.active_version(name)}
    configs = {model: repository.config(model) for model in versions}
    current = (engine_files(repository, versions), setting_of(configs).as_dict())
    if current != (result.context["files"], result.context["default"]):
        raise ServingError(
            f"{name} was published again during the search, so nothing was written: run "
            f"tidegate optimize {name} again"
        )
    return configs


def _changed(
    configs: Mapping[str, ModelConfig], result: Result, winner: Trial
) -> dict[str, ModelConfig]:
    """The configs that the setting changes, each with the measurement."""
    text = json.dumps(measurement(result, winner), separators=(",", ":"))
    changed = {}
    for model, config in applied(configs, winner.setting).items():
        if config != configs[model]:
            config.parameters[TUNED_PARAMETER].string_value = text
            changed[model] = config
    return changed


def _apply(deployment: Deployment, configs: Mapping[str, ModelConfig]) -> None:
    for model, config in configs.items():
        deployment.repository.write_config(model, config, policy_versions(config))
    for replica in deployment.replicas:
        for model in configs:
            if replica.serves(model):
                replica.control.load(model)

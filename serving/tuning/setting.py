"""One setting of a pipeline's serving parameters: read from its configs, and applied to them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from tritonclient.grpc.model_config_pb2 import ModelConfig

from modelspec.hardware import TORCH_BACKEND
from modelspec.names import Role, role_of
from modelspec.parameters import BUCKETS_PARAMETER, INTRA_OP_THREADS
from serving.repository.configs import is_ensemble, pins

ENGINE_BACKENDS = ("onnxruntime", TORCH_BACKEND)
Configs = Mapping[str, ModelConfig]


@dataclass(frozen=True)
class Setting:
    """The serving parameters; None for one that the pipeline does not have. ``instances``,
    ``threads``, ``dynamic_batching`` and ``queue_delay_us`` are the engine's, ``buckets`` (tokens)
    and ``pre_instances`` the first step's; ``max_batch`` (rows) applies to the whole pipeline.
    Without dynamic batching there is no queue delay."""

    instances: int | None = None
    threads: int | None = None
    max_batch: int | None = None
    dynamic_batching: bool | None = None
    queue_delay_us: int | None = None
    buckets: tuple[int, ...] | None = None
    pre_instances: int | None = None

    def as_dict(self) -> dict[str, int | list[int]]:
        """The serving parameters that the pipeline has."""
        values = {key: value for key, value in asdict(self).items() if value is not None}
        return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, int | list[int]]) -> "Setting":
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})  # type: ignore[arg-type]

    @property
    def key(self) -> str:
        return json.dumps(self.as_dict(), sort_keys=True, separators=(",", ":"))

    def changes(self, other: "Setting") -> str:
        """What differs from ``other``, in words: "max_batch 64 -> 16"."""
        mine, theirs = self.as_dict(), other.as_dict()
        changed = [key for key in mine if mine[key] != theirs.get(key)]
        return ", ".join(
            f"{k} {_formatted(theirs.get(k))} -> {_formatted(mine[k])}" for k in changed
        )


@dataclass(frozen=True)
class Roles:
    """Which model of a pipeline has which serving parameters; '' if there is none."""

    public: str
    engine: str
    pre: str


def roles(configs: Configs) -> Roles:
    """The roles of a pipeline's models (NAME_onnx and NAME_pre by the repository's names, with a
    generation's suffix or not)."""
    public = next(name for name, config in configs.items() if is_ensemble(config))
    members = {role_of(public, model): model for model in pins(configs[public])}
    by_backend = [m for m, c in configs.items() if c.backend in ENGINE_BACKENDS]
    engine = members.get(Role.ENGINE) or next(iter(by_backend), "")
    return Roles(public, engine, members.get(Role.PRE, ""))


def setting_of(configs: Configs) -> Setting:
    """The setting in the configs."""
    role = roles(configs)
    engine, pre = configs.get(role.engine), configs.get(role.pre)
    return Setting(
        instances=_instances(engine),
        threads=int(_parameter(engine, INTRA_OP_THREADS)) or None,
        max_batch=configs[role.public].max_batch_size or None,
        dynamic_batching=_has_dynamic_batching(engine),
        queue_delay_us=_queue_delay_us(engine),
        buckets=_buckets(pre),
        pre_instances=_instances(pre),
    )


def applied(configs: Configs, setting: Setting) -> dict[str, ModelConfig]:
    """Copies of the configs with the setting applied; unaffected ones equal the originals."""
    role, changed = roles(configs), {}
    for name, config in configs.items():
        copy = ModelConfig()
        copy.CopyFrom(config)
        if setting.max_batch is not None:
            copy.max_batch_size = setting.max_batch
        if name == role.engine:
            _set_engine(copy, setting)
        elif name == role.pre:
            _set_pre(copy, setting)
        changed[name] = copy
    return changed


def _set_engine(config: ModelConfig, setting: Setting) -> None:
    if setting.instances is not None:
        config.instance_group[0].count = setting.instances
    if setting.threads is not None:
        config.parameters[INTRA_OP_THREADS].string_value = str(setting.threads)
    if setting.dynamic_batching:
        config.dynamic_batching.SetInParent()
    elif setting.dynamic_batching is not None:
        config.ClearField("dynamic_batching")
    if setting.queue_delay_us is not None:
        # Its other fields stay unset: any of them makes Triton 2.51's batcher wake up late.
        config.dynamic_batching.max_queue_delay_microseconds = setting.queue_delay_us


def _set_pre(config: ModelConfig, setting: Setting) -> None:
    if setting.pre_instances is not None:
        config.instance_group[0].count = setting.pre_instances
    if setting.buckets is not None:
        config.parameters[BUCKETS_PARAMETER].string_value = ",".join(map(str, setting.buckets))


def _instances(config: ModelConfig | None) -> int | None:
    """Only for a single group: several (for devices, say) are the user's own layout."""
    if config is None or len(config.instance_group) != 1:
        return None
    return config.instance_group[0].count or 1


def _parameter(config: ModelConfig | None, key: str) -> str:
    if config is None or key not in config.parameters:
        return "0"
    return str(config.parameters[key].string_value)


def _has_dynamic_batching(config: ModelConfig | None) -> bool | None:
    """None if Triton could not merge its requests anyway: it has no batch axis, or sequences."""
    if config is None or config.max_batch_size < 1 or config.HasField("sequence_batching"):
        return None
    return bool(config.HasField("dynamic_batching"))


def _queue_delay_us(config: ModelConfig | None) -> int | None:
    if config is None or not config.HasField("dynamic_batching"):
        return None
    return int(config.dynamic_batching.max_queue_delay_microseconds)


def _buckets(config: ModelConfig | None) -> tuple[int, ...] | None:
    if config is None or BUCKETS_PARAMETER not in config.parameters:
        return None
    return tuple(int(edge) for edge in _parameter(config, BUCKETS_PARAMETER).split(","))


def _formatted(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)

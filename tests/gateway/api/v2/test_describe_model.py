"""Who may read a model's config, and what is hidden in it."""

from tritonclient.grpc import model_config_pb2

from gateway.api.v2.describe_model import check_readable, hide_paths
from gateway.errors import NotFound
from gateway.models.catalogue import Catalogue, read_model
from gateway.policy.access import Access
from gateway.policy.gateway_toml import parse_rules
from tests.gateway.request_contexts import context_of

POLICY = '[tenants.default]\nmodels = ["mine"]\n'


def _config(name: str, *steps: str) -> model_config_pb2.ModelConfig:
    config = model_config_pb2.ModelConfig(name=name)
    for step in steps:
        config.ensemble_scheduling.step.add(model_name=step)
    return config


def _readable(name: str) -> bool:
    configs = (_config("mine", "mine_pre", "shared"), _config("other", "other_pre", "shared"))
    models = {config.name: read_model(config, ("1",)) for config in configs}
    access = Access(parse_rules(POLICY, "gateway.toml"))
    context = context_of({"path": "/", "headers": []}, None, access=access)
    try:
        check_readable(Catalogue(models), context, name, "")
    except NotFound:
        return False
    return (context.action, context.model) == ("read", name)


def test_a_model_its_steps_and_nothing_else():
    names = ("mine", "mine_pre", "shared", "other", "other_pre", "nobody", "")
    assert [name for name in names if _readable(name)] == ["mine", "mine_pre", "shared"]


def test_paths_are_hidden():
    config = _config("m")
    for name, value in {
        "EXECUTION_ENV_PATH": "$$TRITON_MODEL_DIRECTORY/env.tar.gz",
        "tokenizer": "/srv/models/secret",
        "url": "file:///etc/passwd",
        "tidegate.cancellable": "false",
        "threads": "2",
    }.items():
        config.parameters[name].string_value = value
    hide_paths(config)
    assert set(config.parameters) == {"tidegate.cancellable", "threads"}

"""``tidegate convert DIR --engine vllm``: what is written for Triton's vLLM backend, which is not
installed here."""

import json
import shutil

import pytest
from tritonclient.grpc.model_config_pb2 import ModelInstanceGroup

from modelspec.endpoint_schema import EndpointSchema
from modelspec.golden import Golden
from modelspec.parameters import ENDPOINT_PARAMETER, GOLDEN_PARAMETER, MAX_NUM_SEQS_PARAMETER
from modelspec.pbtxt import parse
from serving.errors import PublishFailed
from tests.tiny_models import language_model
from tidegate.app.convert import ConvertOptions, run
from tidegate.app.errors import UsageError
from tidegate.app.paths import Paths


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return language_model(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture
def paths(tmp_path, monkeypatch):
    """An empty home."""
    monkeypatch.delenv("TIDEGATE_REPOSITORY", raising=False)
    return Paths(tmp_path / "home")


def converted(source, paths, **others):
    options = ConvertOptions(str(source), name="talk", engine="vllm", **others)
    return run(options, paths, lambda line: None)


def test_the_folder_has_vllms_settings_and_our_endpoint_schema(source, paths):
    # An architecture that our own engine does not read is none of vLLM's business.
    folder = shutil.copytree(source, paths.home / "phi")
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "phi3"}
    (folder / "config.json").write_text(json.dumps(config))
    result = converted(folder, paths, task="causal-lm")
    assert result.is_new
    written = paths.repository / "talk"
    settings = json.loads((written / "1" / "model.json").read_text())
    assert settings["model"] == str(folder)
    assert settings["max_model_len"] == 512
    assert settings["max_num_seqs"] == 256
    proto = parse((written / "config.pbtxt").read_text())
    assert (proto.backend, proto.max_batch_size) == ("vllm", 0)
    assert proto.parameters[MAX_NUM_SEQS_PARAMETER].string_value == "256"
    assert proto.model_transaction_policy.decoupled
    assert [group.kind for group in proto.instance_group] == [ModelInstanceGroup.KIND_MODEL]
    assert "stream" in [tensor.name for tensor in proto.input if tensor.optional]
    schema = EndpointSchema.parse(proto.parameters[ENDPOINT_PARAMETER].string_value)
    chat = schema.openai["chat"]
    assert "takes" not in chat  # vLLM has all that the gateway knows
    assert chat["markers"] == ["<|im_end|>", "<|im_start|>"]
    assert "<|im_start|>" in chat["template"]
    golden = Golden.parse(proto.parameters[GOLDEN_PARAMETER].string_value)
    golden.require_bound(schema.fields, [tensor.name for tensor in proto.output])
    assert not list(paths.home.glob(".model_repository.staging/*"))


def test_a_name_is_not_taken_twice(source, paths):
    converted(source, paths)
    with pytest.raises(PublishFailed, match="the name is taken"):
        converted(source, paths)


def test_a_repository_that_is_served_here_without_vllm_is_left_alone(source, paths, monkeypatch):
    monkeypatch.setattr("tidegate.app.vllm_model._has_vllm", lambda: False)
    (paths.repository / "other").mkdir(parents=True)
    with pytest.raises(PublishFailed, match="without the vLLM backend"):
        converted(source, paths)
    assert [path.name for path in paths.repository.iterdir()] == ["other"]


def test_other_tasks_are_wrong_usage(source, paths):
    with pytest.raises(UsageError, match="causal-lm"):
        converted(source, paths, task="text-embedding")

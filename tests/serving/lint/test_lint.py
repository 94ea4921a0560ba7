"""The linter on hand-written repositories: each fault is found, with its location."""

import json
import re
import shutil

import onnx
import pytest
from onnx import TensorProto, helper

from serving.errors import ServingError
from serving.lint.check import lint
from serving.lint.finding import Severity
from serving.repository.model_repository import ModelRepository
from tests.running import ROOT
from tests.serving.lint.corpus import graphs
from tests.serving.small_pipeline import publish_staged, stage

STEP = """
backend: "python"
max_batch_size: 8
input [ { name: "text" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "ids" data_type: TYPE_INT64 dims: [ -1 ] } ]
instance_group [ { count: 1 kind: KIND_CPU } ]
"""
ENGINE = """
platform: "onnxruntime_onnx"
max_batch_size: 8
input [ { name: "input_ids" data_type: TYPE_INT64 dims: [ -1 ] } ]
output [ { name: "logits" data_type: TYPE_FP32 dims: [ 3 ] } ]
instance_group [ { count: 2 kind: KIND_CPU } ]
parameters { key: "intra_op_thread_count" value: { string_value: "1" } }
"""
WHOLE = """
platform: "ensemble"
max_batch_size: 8
input [ { name: "text" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "logits" data_type: TYPE_FP32 dims: [ 3 ] } ]
ensemble_scheduling { step [
  { model_name: "step" model_version: 1
    input_map { key: "text" value: "text" } output_map { key: "ids" value: "tokens" } },
  { model_name: "engine" model_version: -1
    input_map { key: "input_ids" value: "tokens" } output_map { key: "logits" value: "logits" } }
] }
"""


def _graph(folder, batch="n", dims=("m",), element_type=TensorProto.INT64) -> None:
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Cast", ["input_ids"], ["logits"], to=TensorProto.FLOAT)]
    values = (
        [value("input_ids", element_type, [batch, *dims])],
        [value("logits", TensorProto.FLOAT, [batch, 3])],
    )
    graph = helper.make_graph(nodes, "g", *values)
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, ir_version=9, opset_imports=opsets)
    onnx.save(model, folder / "model.onnx")


@pytest.fixture
def repository(tmp_path):
    """A repository of three models without any tidegate parameters, and without faults."""
    root = tmp_path / "models"
    for name, text in (("step", STEP), ("engine", ENGINE), ("whole", WHOLE)):
        (root / name / "1").mkdir(parents=True)
        (root / name / "config.pbtxt").write_text(text)
    (root / "step" / "1" / "model.py").touch()
    _graph(root / "engine" / "1")
    return root


def _codes(repository, **options) -> list[str]:
    return [
        finding.code for finding in lint(ModelRepository(repository), **{"cores": 2, **options})
    ]


def test_a_good_hand_written_repository_is_clean(repository):
    assert lint(ModelRepository(repository), cores=2) == []


def test_what_we_publish_is_clean(tmp_path):
    published = tmp_path / "model_repository"
    for add in (1, 2):
        publish_staged(stage(published, add), published)
    assert lint(ModelRepository(published)) == []


def test_no_such_folder_is_an_error(tmp_path):
    with pytest.raises(ServingError, match="there is no folder"):
        lint(ModelRepository(tmp_path / "nowhere"))


# One replacement in one config, and the expected finding.
EDITS = [
    ("step", "max_batch_size: 8", "max_batch_size: many", "config-broken", "step/config.pbtxt"),
    ("step", 'backend: "python"', 'backend: "python" name: "stap"', "name-differs", "step/config"),
    ("step", "dims: [ 1 ]", "dims: [ ]", "dims-empty", "step/config.pbtxt:text"),
    ("step", "dims: [ -1 ]", "dims: [ 0 ]", "dims-bad", "step/config.pbtxt:ids"),
    ("step", "data_type: TYPE_STRING ", "", "type-missing", "step/config.pbtxt:text"),
    ("step", "dims: [ 1 ]", "dims: [ 2 ] reshape { shape: [ 3 ] }", "reshape-differs", "text"),
    ("step", 'name: "ids"', 'name: "idz"', "map-unknown", "whole/config.pbtxt:step 1 (step)"),
    ("step", "TYPE_INT64", "TYPE_INT32", "wire-type", "whole/config.pbtxt:tokens"),
    ("step", "dims: [ -1 ]", "dims: [ 1, -1 ]", "wire-shape", "whole/config.pbtxt:tokens"),
    ("step", "max_batch_size: 8", "max_batch_size: 4", "batch-too-large", "step 1"),
    (
        "step",
        "instance",
        "model_transaction_policy { decoupled: true } instance",
        "step-decoupled",
        "step 1",
    ),
    (
        "step",
        "instance",
        "version_policy { specific { versions: 7 } } instance",
        "version-missing",
        "step",
    ),
    ("engine", "dims: [ -1 ]", "dims: [ 1, -1 ]", "graph-shape", "engine/config.pbtxt:input_ids"),
    ("engine", "TYPE_INT64", "TYPE_INT32", "graph-type", "engine/config.pbtxt:input_ids"),
    ("engine", '"input_ids"', '"ids"', "graph-tensor-unknown", "engine/config.pbtxt:ids"),
    ("engine", '"input_ids"', '"ids"', "graph-input-undeclared", "engine/config.pbtxt:input_ids"),
    ("engine", '"1"', '"4"', "threads-over-cores", "engine/config.pbtxt"),
    ("engine", '"1"', '"0"', "threads-unset", "engine/config.pbtxt"),
    ("engine", '"1"', '"${threads}"', "placeholder", "engine/config.pbtxt"),
    (
        "engine",
        "instance",
        "dynamic_batching { preferred_batch_size: [ 16 ] } instance",
        "preferred-too-large",
        "engine",
    ),
    (
        "engine",
        "instance",
        "dynamic_batching { default_queue_policy { max_queue_size: 9 } } instance",
        "queue-policy",
        "engine",
    ),
    (
        "engine",
        "instance",
        "dynamic_batching { max_queue_delay_microseconds: 90000 } instance",
        "queue-delay",
        "engine",
    ),
    (
        "engine",
        "max_batch_size: 8",
        "max_batch_size: 0 dynamic_batching { }",
        "batching-without-batch",
        "engine",
    ),
    (
        "engine",
        "dims: [ 3 ]",
        'dims: [ 3 ] label_filename: "labels.txt"',
        "labels-missing",
        "engine/config.pbtxt:logits",
    ),
    ("whole", '"ensemble"', '"python"', "ensemble-platform", "whole/config.pbtxt"),
    (
        "whole",
        "ensemble_sch",
        "instance_group { count: 2 } ensemble_sch",
        "ensemble-instances",
        "whole",
    ),
    ("whole", '"step"', '"stop"', "step-unknown", "whole/config.pbtxt:step 1 (stop)"),
    ("whole", "model_version: 1", "model_version: 3", "pin-missing", "whole/config.pbtxt:step 1"),
    ("whole", 'key: "text"', 'key: "txt"', "input-unmapped", "whole/config.pbtxt:step 1"),
    (
        "whole",
        'key: "text" value: "text"',
        'key: "text" value: "logits"',
        "cycle",
        "whole/config.pbtxt",
    ),
    (
        "whole",
        'key: "text" value: "text"',
        'key: "text" value: "logits"',
        "input-unused",
        "whole/config.pbtxt:text",
    ),
    (
        "whole",
        'value: "tokens" } },',
        'value: "other" } },',
        "tensor-unmade",
        "whole/config.pbtxt:tokens",
    ),
    (
        "whole",
        'value: "tokens" } },',
        'value: "other" } },',
        "tensor-unused",
        "whole/config.pbtxt:other",
    ),
    (
        "whole",
        'value: "tokens" } },',
        'value: "logits" } },',
        "tensor-made-twice",
        "whole/config.pbtxt:logits",
    ),
]


@pytest.mark.parametrize(("model", "old", "new", "code", "location"), EDITS)
def test_a_fault_in_a_config_is_found_at_its_place(repository, model, old, new, code, location):
    path = repository / model / "config.pbtxt"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    findings = [
        finding for finding in lint(ModelRepository(repository), cores=2) if finding.code == code
    ]
    assert findings, _codes(repository)
    assert location in findings[0].location
    assert findings[0].message
    assert findings[0].fix


# A change to the files, and the expected finding.
FILES = [
    (lambda r: (r / "engine/1/model.onnx").unlink(), "file-missing"),
    (lambda r: (r / "engine/1/model.onnx").write_bytes(b"no model"), "graph-broken"),
    (
        lambda r: (r / "engine/1/model.onnx").write_text("version https://git-lfs.github.com/spec"),
        "file-is-pointer",
    ),
    (lambda r: _graph(r / "engine/1", batch=1), "graph-batch-fixed"),
    (lambda r: (r / "engine/2").mkdir(), "step-unpinned"),
    (lambda r: (r / "step/v2").mkdir(), "version-ignored"),
    (lambda r: (r / "step/.config.pbtxt.swp").touch(), "stray-file"),
    (lambda r: (r / ".git").mkdir(), "stray-folder"),
    (lambda r: (r / "notes").mkdir(), "stray-folder"),
    (lambda r: (r / "whole/1").rmdir(), "version-missing"),
    (lambda r: (r / "step/config.pbtxt").unlink(), "config-missing"),
    (lambda r: shutil.copytree(r / "step", r / "my model"), "name-illegal"),
    (lambda r: shutil.copytree(r / "step", r / "completions"), "name-reserved"),
    (lambda r: shutil.copytree(r / "step", r / "step.candidate"), "candidate-left"),
    (
        lambda r: (
            (r / "engine/configs").mkdir() or (r / "engine/configs/gpu.pbtxt").write_text("x")
        ),
        "config-broken",
    ),
]


@pytest.mark.parametrize(("spoil", "code"), FILES, ids=[code for _, code in FILES])
def test_a_fault_in_the_files_is_found(repository, spoil, code):
    spoil(repository)
    assert code in _codes(repository)


ENDPOINT_SCHEMA = {
    "request": {"properties": {"text": {"x-tensor": "text"}}},
    "response": {"properties": {"logits": {"x-tensor": "logits"}}},
}
GOLDEN = {"request": {"text": "hello"}, "expect": {"logits": [1]}, "tolerance": 0.1}


@pytest.mark.parametrize(
    ("endpoint_schema", "golden", "code"),
    [
        (ENDPOINT_SCHEMA, None, "golden-missing"),
        (None, GOLDEN, "golden-without-endpoint"),
        ("no JSON", GOLDEN, "endpoint-broken"),
        ("[" * 100_000, GOLDEN, "endpoint-broken"),
        ({**ENDPOINT_SCHEMA, "response": {"properties": []}}, GOLDEN, "endpoint-broken"),
        (ENDPOINT_SCHEMA, "no JSON", "golden-broken"),
        (ENDPOINT_SCHEMA, "{}", "golden-broken"),
        (ENDPOINT_SCHEMA, {**GOLDEN, "tolerance": 10**400}, "golden-broken"),
        (ENDPOINT_SCHEMA, {**GOLDEN, "request": {"text": 1}}, "golden-broken"),
        ({**ENDPOINT_SCHEMA, "response": {"x-tensor": "label"}}, GOLDEN, "endpoint-unbound"),
        ({**ENDPOINT_SCHEMA, "request": {}}, {**GOLDEN, "request": {}}, "input-unreachable"),
        (ENDPOINT_SCHEMA, {**GOLDEN, "expect": {"label": [1]}}, "golden-unbound"),
    ],
)
def test_an_endpoint_schema_that_binds_to_nothing_is_found(
    repository, endpoint_schema, golden, code
):
    text = WHOLE
    for key, value in (("tidegate.endpoint", endpoint_schema), ("tidegate.golden", golden)):
        if value is not None:
            string = value if isinstance(value, str) else json.dumps(value)
            quoted = json.dumps(string)
            text += f'parameters {{ key: "{key}" value {{ string_value: {quoted} }} }}\n'
    (repository / "whole" / "config.pbtxt").write_text(text)
    assert _codes(repository) == [code]


def test_a_step_that_leaves_its_tensors_to_triton_is_no_fault(repository):
    """Triton completes the config from the model; undeclared tensors cannot be compared."""
    (repository / "engine" / "config.pbtxt").write_text('backend: "onnxruntime"\nmax_batch_size: 8')
    assert _codes(repository) == []


def test_a_step_without_a_batch_axis_may_be_part_of_an_ensemble_with_one(repository):
    """Triton compares the dims with and without the axis, and loads and serves it."""
    path = repository / "step" / "config.pbtxt"
    path.write_text(path.read_text().replace("max_batch_size: 8", "max_batch_size: 0"))
    assert _codes(repository) == []


def test_a_file_is_distinguished_from_a_missing_folder(repository):
    with pytest.raises(ServingError, match="is a file"):
        lint(ModelRepository(repository / "step" / "config.pbtxt"))


def test_a_field_is_refused_by_the_servers_that_do_not_know_it(repository):
    path = repository / "step" / "config.pbtxt"
    path.write_text(path.read_text() + "model_metrics { }")
    assert _codes(repository) == ["field-newer", "step-refused"]
    assert _codes(repository, triton=(2, 52)) == []
    path.write_text(path.read_text().replace("model_metrics { }", "response_cache { }"))
    assert _codes(repository) == []
    assert _codes(repository, triton=(2, 14)) == ["field-newer", "step-refused"]


def test_nvidias_own_sequence_models_are_no_fault(tmp_path):
    """Their controls are inputs that only sequence_batching declares."""
    for case in graphs.CASES:
        if case.name in ("simple_sequence", "simple_dyna_sequence"):
            case.write(tmp_path)
    assert _codes(tmp_path) == ["threads-unset"]  # two instances, and no number of threads


def test_one_wrong_name_is_one_finding(repository):
    path = repository / "whole" / "config.pbtxt"
    path.write_text(path.read_text().replace('key: "ids"', 'key: "idz"'))
    assert _codes(repository) == ["map-unknown"]


def test_errors_come_first_and_models_built_on_demand_are_no_error(repository):
    (repository / "whole" / "1").rmdir()
    (repository / "notes").mkdir()
    findings = lint(ModelRepository(repository), cores=2)
    assert [finding.severity for finding in findings] == [Severity.ERROR, Severity.WARNING]
    findings = lint(ModelRepository(repository), cores=2, on_demand=["whole"])
    assert [finding.code for finding in findings] == ["stray-folder", "not-built"]


def test_every_code_is_documented():
    """And the page lists no unknown code."""
    sources = "".join(path.read_text() for path in (ROOT / "serving" / "lint").glob("*.py"))
    codes = set(re.findall(r'(?:error|warning|info|say)\(\s*"([a-z-]+)"', sources))
    page = (ROOT / "docs" / "linting.md").read_text()
    documented = set(re.findall(r"`([a-z]+(?:-[a-z]+)+)`|`(tampered|placeholder|cycle)`", page))
    assert codes == {name for pair in documented for name in pair if name}

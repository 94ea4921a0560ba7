"""The OpenAPI document matches the API: statuses, shapes, and which routes need a key."""

import re
from dataclasses import replace

import pytest
from google.protobuf import text_format
from openapi_spec_validator import validate
from tritonclient.grpc import model_config_pb2

from gateway.api.admin.health import health_router
from gateway.api.openapi.docs_pages import REDOC, SCRIPT, SWAGGER
from gateway.api.openapi.document import describe
from gateway.api.tasks.pipelines import pipelines_router
from gateway.models.catalogue import Catalogue, read_model
from tests.running import ROOT


def _model(path):
    text = (ROOT / path / "config.pbtxt").read_text()
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    config.name = path.rpartition("/")[2]
    return read_model(config, ("1", "3"))


ECHO, IDENTITY = _model("tests/models/echo_llm"), _model("model_repository/identity_fp32")
CLASSIFIER = replace(ECHO, name="labels", decoupled=False)


def _described(models):
    control = [*health_router(None).routes, *pipelines_router(None).routes]  # described, not called
    return describe("Tidegate", "1", Catalogue(models), control)


@pytest.fixture
def document():
    models = {model.name: model for model in (ECHO, IDENTITY, CLASSIFIER)}
    return _described(models)


def _operations(document):
    for path, item in document["paths"].items():
        for method in ("get", "post"):
            if method in item:
                yield path, item[method]


def test_a_card_is_text_to_read():
    card = {
        "license": "mit",
        "language": ["en", "zh"],
        "metrics": [{"name": "macro-F1", "value": 0.84, "data": "127 questions"}],
    }
    schema = replace(CLASSIFIER.endpoint_schema.schema, card=card)
    labels = replace(CLASSIFIER, endpoint_schema=replace(CLASSIFIER.endpoint_schema, schema=schema))
    assert _described({"labels": labels})["paths"]["/v1/labels"]["post"]["description"] == (
        "- **license**: mit\n- **language**: en; zh\n- **metrics**: macro-F1 0.84 (127 questions)"
    )


@pytest.mark.parametrize("models", [(), (IDENTITY,), (ECHO,), (ECHO, IDENTITY, CLASSIFIER)])
def test_it_is_valid_whatever_is_served(models):
    validate(_described({model.name: model for model in models}))


def test_every_operation_has_a_name_and_every_response_a_schema(document):
    names = [operation["operationId"] for _, operation in _operations(document)]
    assert len(names) == len(set(names)) > 20
    assert all(re.fullmatch(r"[A-Za-z0-9_]+", name) for name in names)
    for path, operation in _operations(document):
        for status, response in operation["responses"].items():
            if not (path.endswith("/ready") and status == "200"):
                for content in response["content"].values():
                    assert content["schema"], f"{path} {status}"


def test_a_bad_request_has_the_status_of_its_api(document):
    for path, operation in _operations(document):
        if "requestBody" not in operation:
            assert not {"400", "422", "413"} & set(operation["responses"])
            continue
        is_task = operation["tags"] == ["tasks"]
        assert ("422" in operation["responses"]) == is_task, path
        assert ("400" in operation["responses"]) != is_task, path
        assert {"401", "403", "404", "408", "413", "429", "502", "503", "504"} <= set(
            operation["responses"]
        )
        assert "Retry-After" in operation["responses"]["429"]["headers"]


def test_what_needs_no_key_and_what_readiness_says(document):
    assert document["security"] == [{"key": []}, {"api-key": []}]
    free = [path for path, operation in _operations(document) if operation.get("security")]
    assert free == ["/healthz", "/readyz"]
    assert set(document["paths"]["/readyz"]["get"]["responses"]) == {"200", "503"}
    assert "Authorization: Bearer" in document["info"]["description"]


def test_streams_and_tensors_as_bytes(document):
    chat = document["paths"]["/v1/chat/completions"]["post"]["responses"]["200"]["content"]
    assert chat["text/event-stream"]["schema"]["$ref"].endswith("/ChatCompletionChunk")
    assert chat["application/json"]["schema"]["$ref"].endswith("/ChatCompletion")
    responses = document["paths"]["/v1/responses"]["post"]["responses"]["200"]["content"]
    assert responses["text/event-stream"]["schema"]["$ref"].endswith("/ResponseEvent")
    assert responses["application/json"]["schema"]["$ref"].endswith("/Response")
    infer = document["paths"]["/v2/models/{model}/infer"]["post"]
    for content in (infer["requestBody"]["content"], infer["responses"]["200"]["content"]):
        assert set(content) == {"application/json", "application/octet-stream"}
    stream = document["paths"]["/v2/models/{model}/generate_stream"]["post"]
    assert set(stream["responses"]["200"]["content"]) == {"text/event-stream"}


def test_examples_fit_the_model_that_their_path_names():
    document = describe("Tidegate", "1", Catalogue({"labels": CLASSIFIER}))
    item = document["paths"]["/v2/models/{model}/versions/{version}/infer"]
    assert [parameter["example"] for parameter in item["parameters"]] == ["labels", "3"]
    body = item["post"]["requestBody"]["content"]["application/json"]["examples"]
    assert body["labels"]["value"] == {
        "inputs": [
            {
                "name": "text_input",
                "shape": [1],
                "datatype": "BYTES",
                "data": ["Where is my parcel?"],
            }
        ]
    }


def test_the_pages_script_keeps_the_key_in_the_tab_and_sends_it_in_a_header_only():
    """How the pages behave in a browser was tested in Chromium by hand (docs/operating.md): the
    suite has no browser. So this checks what the script may not use, and how it sends the key."""
    script = SCRIPT.decode()
    code = re.sub(r"//.*", "", script)
    assert "sessionStorage.setItem(KEY, key)" in code
    assert "headers: key ? { Authorization: `Bearer ${key}` } : {}" in code
    for never in ("localStorage", "document.cookie", "location", "innerHTML", "http:", "https:"):
        assert never not in code, never
    assert code.count("fetch(") == 1
    for page in (SWAGGER.decode(), REDOC.decode()):
        assert 'data-document="/openapi.json"' in page and "<script>" not in page
        links = re.findall(r'(?:src|href)="([^"]+)"', page)
        assert links and all(link.startswith("/") for link in links)

"""One taxonomy, one shape per API: the table of the design, pinned."""

import inspect

import orjson
import pytest

from gateway import errors
from gateway.errors import GatewayError, PromptTooLong, UnknownModel, no_model
from gateway.render import TABLE, Api, api_of, error_reply, status_of

# From the design's table: task, OpenAI, V2.
DESIGN = {
    "unauthenticated": (401, 401, 401),
    "forbidden": (403, 403, 403),
    "not_found": (404, 404, 404),
    "invalid_request": (422, 400, 400),
    "too_large": (413, 413, 413),
    "quota_exceeded": (429, 429, 429),
    "no_capacity": (503, 503, 503),
    "deadline_exceeded": (504, 504, 504),
    "upstream_error": (502, 502, 502),
}
# Where OpenAI has a code of its own.
OPENAI_CODES = {UnknownModel: "model_not_found", PromptTooLong: "context_length_exceeded"}
PATHS = {Api.TASK: "/v1/anything", Api.OPENAI: "/v1/embeddings", Api.V2: "/v2/models/m/infer"}
ERRORS = [
    error_type
    for _, error_type in inspect.getmembers(errors, inspect.isclass)
    if issubclass(error_type, GatewayError) and error_type is not GatewayError
]


def test_the_table_is_the_designs():
    examples = {error_type.code: error_type("") for error_type in ERRORS}
    statuses = {code: tuple(status_of(examples[code], api) for api in Api) for code in DESIGN}
    assert statuses == DESIGN


@pytest.mark.parametrize("error_type", ERRORS, ids=lambda error_type: error_type.__name__)
@pytest.mark.parametrize("api", Api)
def test_every_error_has_the_shape_of_its_api(error_type, api):
    reply = error_reply(
        error_type("what is wrong", retry_after_s=3, param="field"), PATHS[api], "id-1"
    )
    body = orjson.loads(reply.body)
    assert reply.status == status_of(error_type(""), api)
    assert (b"retry-after", b"3") in reply.headers
    if api is Api.TASK:
        assert reply.content_type == b"application/problem+json"
        assert body["detail"] == "what is wrong"
        assert (body["code"], body["request_id"], body["param"]) == (
            error_type.code,
            "id-1",
            "field",
        )
        assert body["title"] == TABLE[error_type.code][2]
    elif api is Api.OPENAI:
        assert body["error"]["message"] == "what is wrong"
        code = OPENAI_CODES.get(error_type, error_type.code)
        assert (body["error"]["code"], body["error"]["param"]) == (code, "field")
    else:
        assert body == {"error": "what is wrong (request id-1)"}


@pytest.mark.parametrize(
    ("api", "listed_at", "code"),
    [(Api.OPENAI, "/v1/models", "model_not_found"), (Api.TASK, "/v2/models", "not_found")],
)
def test_an_unknown_model_is_called_as_the_api_calls_it(api, listed_at, code):
    body = orjson.loads(error_reply(no_model("nonsense"), PATHS[api], "id-1").body)
    fault = body.get("error", body)
    message = fault.get("message") or fault["detail"]
    assert fault["code"] == code
    assert "'nonsense'" in message and f"see GET {listed_at} " in message


@pytest.mark.parametrize(
    ("path", "api"),
    [
        ("/v2", Api.V2),
        ("/v2/models/x/infer", Api.V2),
        ("/v22", Api.TASK),
        ("/v1/models", Api.OPENAI),
        ("/v1/embeddings", Api.OPENAI),
        ("/v1/chat/completions", Api.OPENAI),
        ("/v1/responses", Api.OPENAI),
        ("/tokenize", Api.OPENAI),
        ("/detokenize", Api.OPENAI),
        ("/v1/text_embedding", Api.TASK),
        ("/readyz", Api.TASK),
    ],
)
def test_a_path_has_an_api_before_it_is_routed(path, api):
    assert api_of(path) is api

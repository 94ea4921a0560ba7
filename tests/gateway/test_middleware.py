"""What every request passes through, whichever API it is for: identity, methods, CORS, paths."""

import pytest

from gateway.api.openapi.docs_pages import ASSETS
from tests.gateway.echo_app import echo_app

ORIGIN = "https://app.example.com"
TENANTS = "[tenants.default]\nmodels = ['echo_*']\n"


@pytest.fixture
async def open_app(tmp_path):
    async with echo_app(tmp_path, cors_origins=(ORIGIN,)) as client_and_key:
        yield client_and_key


@pytest.fixture
async def governed(tmp_path):
    async with echo_app(tmp_path, TENANTS) as client_and_key:
        yield client_and_key


def _with(key, **more):
    return {"Authorization": f"Bearer {key}", **more}


UNREAD = "no Triton server has listed its models for 5 s"


# --- identity ---------------------------------------------------------------------------------


async def test_azures_header_is_an_identity(open_app):
    client, key = open_app
    get = client.get
    assert (await get("/v1/models", headers={"api-key": key})).status_code == 200
    assert (await get("/v1/models", headers={"api-key": "nonsense"})).status_code == 401
    assert (await get("/v1/models", headers={"x-api-key": key})).status_code == 401
    both = _with(key, **{"api-key": key})
    assert (await get("/v1/models", headers=both)).status_code == 200
    for headers in (_with(key, **{"api-key": "other"}), _with("other", **{"api-key": key})):
        refused = await get("/v1/models", headers=headers)
        assert refused.status_code == 400 and "differ" in refused.json()["error"]["message"]
    twice = [("api-key", key), ("api-key", key)]
    assert (await get("/v1/models", headers=twice)).status_code == 400


async def test_readiness_tells_a_stranger_no_names(governed):
    client, key = governed
    for headers in ({}, {"Authorization": "Bearer nonsense"}):
        response = await client.get("/readyz", headers=headers)
        assert (response.status_code, response.json()) == (503, {"status": "not ready"})
    own = await client.get("/readyz", headers=_with(key))
    assert own.status_code == 503
    assert own.json() == {
        "status": "not ready",
        "pipelines": {"echo_llm": "unproved", "tidegate:replicas": UNREAD},
    }


async def test_readiness_says_all_where_there_are_no_tenants(open_app):
    client, _ = open_app
    response = await client.get("/readyz")
    assert response.json()["pipelines"] == {
        "echo_llm": "unproved",
        "secret_model": "is not being served",
        "tidegate:replicas": UNREAD,
    }


async def test_the_pages_are_open_and_the_document_is_not_once_there_are_tenants(governed):
    client, key = governed
    for page in ("/docs", "/redoc", "/docs/docs.js"):
        response = await client.get(page)
        assert response.status_code == 200
        assert "echo_llm" not in response.text and "secret_model" not in response.text
        assert "script-src 'self';" in response.headers["content-security-policy"]
    assert (await client.get("/openapi.json")).status_code == 401
    own = await client.get("/openapi.json", headers=_with(key))
    assert "echo_llm" in own.text and "secret_model" not in own.text


async def test_the_viewers_files_are_open_and_read_once(governed):
    client, _ = governed
    for name in ("redoc.standalone.js", "swagger-ui.css", "favicon.png"):
        full = await client.get(f"/static-offline-docs/{name}")
        assert (full.status_code, full.content) == (200, ASSETS[name][0])
        assert full.headers["content-type"] == ASSETS[name][1]
        head = await client.head(f"/static-offline-docs/{name}")
        assert head.headers["content-length"] == str(len(ASSETS[name][0]))
    for path in ("app.py", "../app.py", ""):
        assert (await client.get(f"/static-offline-docs/{path}")).status_code in (401, 404)


# --- methods ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v2/models/echo_llm/infer", "POST, OPTIONS"),
        ("POST", "/v2/models/echo_llm", "GET, HEAD, OPTIONS"),
        ("DELETE", "/v1/models/echo_llm", "GET, HEAD, OPTIONS"),
        ("GET", "/v1/embeddings", "POST, OPTIONS"),
        ("PUT", "/v1/chat/completions", "POST, OPTIONS"),
        ("POST", "/healthz", "GET, HEAD, OPTIONS"),
        ("PATCH", "/docs", "GET, HEAD, OPTIONS"),
        ("POST", "/openapi.json", "GET, HEAD, OPTIONS"),
        ("POST", "/v2/models/stats", "GET, HEAD, OPTIONS"),
    ],
)
async def test_another_method_gets_the_allowed_ones(open_app, method, path, allowed):
    client, key = open_app
    response = await client.request(method, path, headers=_with(key))
    assert (response.status_code, response.headers["allow"]) == (405, allowed)
    assert "method" in response.text or "does not take" in response.text
    options = await client.options(path, headers=_with(key))
    assert (options.status_code, options.headers["allow"]) == (204, allowed)


async def test_head_is_get_without_a_body(open_app):
    client, key = open_app
    for path in ("/healthz", "/readyz", "/", "/docs", "/openapi.json", "/v1/models", "/v2"):
        head = await client.head(path, headers=_with(key))
        get = await client.get(path, headers=_with(key))
        assert head.status_code == get.status_code, path
        assert head.headers["content-length"] == get.headers["content-length"], path


async def test_the_start_leads_to_the_documentation(governed):
    client, _ = governed
    response = await client.get("/")
    assert (response.status_code, response.headers["location"]) == (307, "/docs")


# --- paths ------------------------------------------------------------------------------------

OPENAIS = [
    "realtime/sessions",
    "moderations",
    "images/generations",
    "files",
    "files/abc",
    "batches",
]
OPENAIS += ["audio/speech", "audio/transcriptions", "fine_tuning/jobs", "assistants", "uploads"]


@pytest.mark.parametrize("path", OPENAIS)
async def test_what_openai_has_and_we_do_not(open_app, path):
    """The same for each method, in the one shape that OpenAI's clients read."""
    client, key = open_app
    for method in ("GET", "POST", "DELETE", "OPTIONS"):
        response = await client.request(method, f"/v1/{path}", headers=_with(key))
        assert response.status_code == 404
        error = response.json()["error"]
        assert error["code"] == "not_found" and "not offered" in error["message"]
        assert error["request_id"] == response.headers["x-request-id"]


@pytest.mark.parametrize(
    "path",
    [
        "systemsharedmemory/status",
        "systemsharedmemory/region/a/register",
        "cudasharedmemory/region/a/unregister",
        "repository/index",
        "repository/models/echo_llm/load",
        "logging",
        "trace/setting",
        "models/echo_llm/trace/setting",
    ],
)
async def test_what_triton_has_and_we_do_not(open_app, path):
    client, key = open_app
    for method in ("GET", "POST"):
        response = await client.request(method, f"/v2/{path}", headers=_with(key))
        assert response.status_code == 404 and "not offered" in response.json()["error"]


async def test_a_task_that_is_not_there_is_not_there_for_any_method(governed):
    client, key = governed
    for method in ("GET", "POST", "PUT"):
        for name in ("secret_model", "nothing"):
            response = await client.request(method, f"/v1/{name}", headers=_with(key))
            assert response.status_code == 404, (method, name)


async def test_a_long_path_is_not_sent_back(open_app):
    client, key = open_app
    for headers in ({}, _with(key)):
        response = await client.get("/" + "a" * 30_000, headers=headers)
        assert response.status_code in (401, 404) and len(response.content) < 1500


# --- CORS -------------------------------------------------------------------------------------

PREFLIGHT = {
    "Origin": ORIGIN,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization, content-type, x-stainless-lang",
}


async def test_a_preflight_needs_no_identity(open_app):
    client, _ = open_app
    response = await client.options("/v1/chat/completions", headers=PREFLIGHT)
    assert response.status_code == 204
    headers = response.headers
    assert headers["access-control-allow-origin"] == ORIGIN
    assert "POST" in headers["access-control-allow-methods"]
    assert headers["access-control-allow-headers"] == PREFLIGHT["Access-Control-Request-Headers"]
    assert "Origin" in headers.get_list("vary", split_commas=True)
    assert "access-control-allow-credentials" not in headers


@pytest.mark.parametrize("path", ["/v1/models", "/v2", "/v1/nothing", "/v1/responses", "/healthz"])
@pytest.mark.parametrize("known", [True, False])
async def test_every_response_has_the_headers_errors_too(open_app, path, known):
    client, key = open_app
    headers = _with(key) if known else {}
    response = await client.get(path, headers={**headers, "Origin": ORIGIN})
    assert response.headers["access-control-allow-origin"] == ORIGIN
    exposed = response.headers["access-control-expose-headers"].split(", ")
    assert {"x-request-id", "server-timing", "retry-after", "ratelimit"} <= set(exposed)
    other = await client.get(path, headers={**headers, "Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers
    assert other.headers["vary"] == "Origin"  # a cache must not mix the two up
    assert other.status_code == response.status_code


@pytest.mark.parametrize(
    "headers",
    [
        {**PREFLIGHT, "Origin": "https://app.example.com.evil.example"},
        {**PREFLIGHT, "Origin": "null"},
        {"Origin": ORIGIN},
    ],
)
async def test_what_is_no_preflight_of_a_known_origin_needs_an_identity(open_app, headers):
    client, _ = open_app
    response = await client.options("/v1/models", headers=headers)
    assert response.status_code == 401


async def test_without_the_setting_there_is_none(governed):
    client, key = governed
    assert (await client.options("/v1/models", headers=PREFLIGHT)).status_code == 401
    response = await client.get("/v1/models", headers=_with(key, Origin=ORIGIN))
    assert not [name for name in response.headers if "access-control" in name or name == "vary"]


async def test_every_origin(tmp_path):
    async with echo_app(tmp_path, cors_origins=("*",)) as (client, key):
        response = await client.get("/v1/models", headers=_with(key, Origin="https://any.example"))
        assert response.headers["access-control-allow-origin"] == "*"
        preflight = await client.options("/v1/models", headers=PREFLIGHT)
        assert preflight.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in preflight.headers

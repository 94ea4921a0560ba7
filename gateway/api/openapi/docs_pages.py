"""``/docs`` and ``/redoc``: the OpenAPI document to read and to try out, in any browser.

The pages contain no model names and need no key. Their script fetches ``/openapi.json``, asks for
a key if that is refused, and stores it in the tab's session storage, nowhere else.
"""

from pathlib import Path

import fastapi_offline
from fastapi import APIRouter, Response

from gateway.errors import NotFound
from gateway.http.control import ControlRoute
from gateway.http.handler import open_to_all

STATIC = "/static-offline-docs"  # the viewers themselves: they work without internet access
_TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".png": "image/png",
}
# Read once: opening a file for each request would let strangers use up our descriptors.
ASSETS = {
    file.name: (file.read_bytes(), _TYPES[file.suffix])
    for file in sorted((Path(fastapi_offline.__file__).parent / "static").iterdir())
    if file.suffix in _TYPES
}
SCRIPT = (Path(__file__).parent / "pages" / "docs.js").read_bytes()
# Scripts come only from here; Redoc runs a worker that it creates from a blob, and styles inline.
_HEADERS = {
    "content-security-policy": (
        "default-src 'self'; script-src 'self'; worker-src blob:; img-src 'self' data: blob:; "
        "style-src 'self' 'unsafe-inline'; font-src 'self' data:; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Tidegate - API</title>
<link rel="icon" href="{static}/favicon.png">
{head}
<style>
body {{ margin: 0; }}
#key-form, #fault {{ font: 16px/1.5 sans-serif; max-width: 34em; margin: 4em auto;
  padding: 0 1em; }}
#key-form input {{ font: inherit; width: 100%; box-sizing: border-box; padding: .4em; }}
#key-form button {{ font: inherit; margin-top: .6em; padding: .4em 1.2em; }}
</style>
</head>
<body data-viewer="{viewer}" data-document="/openapi.json">
<form id="key-form" hidden>
<h1>Tidegate</h1>
<p id="prompt">What the API offers depends on the caller: enter your key.</p>
<p><label for="key">API key or token</label>
<input id="key" type="password" autocomplete="off" spellcheck="false" required></p>
<button type="submit">Show the API</button>
</form>
<p id="fault" role="alert" hidden></p>
<div id="viewer"></div>
<script src="{static}/{viewer_script}"></script>
<script src="/docs/docs.js"></script>
<noscript><p>This page needs JavaScript. The document itself is at /openapi.json.</p></noscript>
</body>
</html>
"""


def _page(viewer: str, viewer_script: str, head: str = "") -> bytes:
    return _PAGE.format(
        static=STATIC, viewer=viewer, viewer_script=viewer_script, head=head
    ).encode()


SWAGGER = _page(
    "swagger", "swagger-ui-bundle.js", f'<link rel="stylesheet" href="{STATIC}/swagger-ui.css">'
)
REDOC = _page("redoc", "redoc.standalone.js")


def docs_router() -> APIRouter:
    router = APIRouter(route_class=ControlRoute, include_in_schema=False)

    @router.get("/docs")
    @open_to_all
    async def swagger() -> Response:
        return Response(SWAGGER, media_type="text/html", headers=_HEADERS)

    @router.get("/redoc")
    @open_to_all
    async def redoc() -> Response:
        return Response(REDOC, media_type="text/html", headers=_HEADERS)

    @router.get("/docs/docs.js")
    @open_to_all
    async def script() -> Response:
        return Response(SCRIPT, media_type="text/javascript", headers=_HEADERS)

    @router.get(STATIC + "/{name}")
    @open_to_all
    async def asset(name: str) -> Response:
        if name not in ASSETS:
            raise NotFound("this file does not exist: see /docs")
        body, media_type = ASSETS[name]
        headers = {"x-content-type-options": "nosniff"}
        return Response(body, media_type=media_type, headers=headers)

    return router

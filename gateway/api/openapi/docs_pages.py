"""``/docs`` and ``/redoc``: the OpenAPI document to read and to try out, in any browser.

The pages contain no model names and need no key. Their script fetches ``/openapi.json``, asks for
a key if that is refused, and stores it in the tab's session storage, nowhere else.
"""

from pathlib import Path

import fastapi_offline
from starlette.routing import Route

from gateway.errors import NotFound
from gateway.http.handler import Endpoint, Handler, open_to_all
from gateway.http.request_context import RequestContext
from gateway.render import Reply

STATIC = "/static-offline-docs"  # the viewers themselves: they work without internet access
_TYPES = {
    ".js": b"text/javascript; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".png": b"image/png",
}
# Read once: opening a file for each request would let strangers use up our descriptors.
ASSETS = {
    file.name: (file.read_bytes(), _TYPES[file.suffix])
    for file in sorted((Path(fastapi_offline.__file__).parent / "static").iterdir())
    if file.suffix in _TYPES
}
SCRIPT = (Path(__file__).parent / "pages" / "docs.js").read_bytes()
# Scripts come only from here; Redoc runs a worker that it creates from a blob, and styles inline.
_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'self'; script-src 'self'; worker-src blob:; img-src 'self' data: blob:; "
        b"style-src 'self' 'unsafe-inline'; font-src 'self' data:; form-action 'self'; "
        b"base-uri 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]
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


class DocsPages:
    def routes(self) -> list[Route]:
        table: dict[str, Handler] = {
            "/docs": self.swagger,
            "/redoc": self.redoc,
            "/docs/docs.js": self.script,
            STATIC + "/{name}": self.asset,
        }
        return [Route(path, Endpoint(table[path]), methods=["GET"]) for path in table]

    @open_to_all
    async def swagger(self, context: RequestContext) -> Reply:
        return Reply(200, SWAGGER, b"text/html; charset=utf-8", [*_HEADERS])

    @open_to_all
    async def redoc(self, context: RequestContext) -> Reply:
        return Reply(200, REDOC, b"text/html; charset=utf-8", [*_HEADERS])

    @open_to_all
    async def script(self, context: RequestContext) -> Reply:
        return Reply(200, SCRIPT, b"text/javascript; charset=utf-8", [*_HEADERS])

    @open_to_all
    async def asset(self, context: RequestContext) -> Reply:
        asset = ASSETS.get(context.scope["path_params"]["name"])
        if asset is None:
            raise NotFound("this file does not exist: see /docs")
        return Reply(200, *asset, [(b"x-content-type-options", b"nosniff")])

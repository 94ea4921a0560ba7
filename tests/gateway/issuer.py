"""A small OpenID Connect issuer on loopback, which can be slow, wrong or unreachable."""

import asyncio
import functools
import json
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

JWKS, DISCOVERY = "/keys", "/.well-known/openid-configuration"


class SigningKey:
    """A private key and the JWK of its public half: the same for the same ``kid``, algorithm and
    ``owner``."""

    def __init__(
        self, kid: str, algorithm: str = "RS256", *, owner: str = "issuer", **fields: str
    ) -> None:
        self.kid, self.algorithm = kid, algorithm
        self.private = _private_key(kid, algorithm, owner)
        public = ECAlgorithm if algorithm.startswith("ES") else RSAAlgorithm
        jwk = public.to_jwk(self.private.public_key(), as_dict=True)
        self.jwk: dict[str, Any] = {**jwk, "kid": kid, **fields}


@functools.cache
def _private_key(kid: str, algorithm: str, owner: str) -> Any:
    """One that is made once: an RSA key takes a tenth of a second."""
    if algorithm.startswith("ES"):
        return ec.generate_private_key(ec.SECP256R1())
    return rsa.generate_private_key(65537, 2048)


async def fetches_ended() -> None:
    """Wait for the keys that are being fetched: a loop that ends before httpx has connected leaves
    a coroutine that was never awaited."""
    fetches = [task for task in asyncio.all_tasks() if "Jwks._read" in str(task.get_coro())]
    if fetches:
        await asyncio.wait(fetches)


class Issuer:
    """Serves discovery and keys. ``faults`` maps a path to a status, ``delay_s`` slows it down, and
    while ``may_respond`` is not set it hangs."""

    def __init__(self) -> None:
        self.keys = [SigningKey("one")]
        self.requests: list[str] = []
        self.faults: dict[str, int] = {}
        self.documents: dict[str, Any] = {}
        self.delay_s = 0.0
        self.may_respond = threading.Event()
        self.may_respond.set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self.may_respond.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def token(
        self,
        *,
        key: SigningKey | None = None,
        header: Mapping[str, Any] | None = None,
        **claims: Any,
    ) -> str:
        """A valid token, apart from the arguments. A claim or header that is None is left out."""
        key = key or self.keys[0]
        now = time.time()
        payload = {"iss": self.url, "aud": "tidegate", "sub": "ann", "exp": now + 60, **claims}
        headers = {"kid": key.kid, "typ": "JWT", **(header or {})}
        claims_sent = {name: value for name, value in payload.items() if value is not None}
        # The lower layer: the upper one refuses to sign invalid claims.
        return jwt.api_jws.encode(
            json.dumps(claims_sent).encode(), key.private, algorithm=key.algorithm, headers=headers
        )

    def document(self, path: str) -> Any:
        """The document at a path: bytes, or a value to serialise as JSON."""
        known = {
            DISCOVERY: {"issuer": self.url, "jwks_uri": self.url + JWKS},
            JWKS: {"keys": [key.jwk for key in self.keys]},
        }
        return self.documents.get(path, known.get(path))

    def _handler(issuer) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - the handler has a self too
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.requests.append(self.path)
                time.sleep(issuer.delay_s)
                issuer.may_respond.wait()
                document = issuer.document(self.path)
                body = document if isinstance(document, bytes) else json.dumps(document).encode()
                self.send_response(issuer.faults.get(self.path, 200))
                self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                try:
                    self.wfile.write(body)
                except OSError:
                    return  # the client has closed the connection

            def log_message(self, *arguments: Any) -> None:
                """Quiet."""

        return Handler

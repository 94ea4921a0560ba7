"""HTTP to our own gateway with a key in its header: the key is for that gateway alone."""

import ssl
import urllib.request


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        """None: the answer is an HTTPError."""


def direct_opener(context: ssl.SSLContext | None = None) -> urllib.request.OpenerDirector:
    """Asks neither a proxy of the environment nor where an answer points to."""
    return urllib.request.build_opener(
        urllib.request.ProxyHandler({}),
        _NoRedirects(),
        urllib.request.HTTPSHandler(context=context),
    )

"""The credential that a request carries, and the refusal of every invalid one."""

from gateway.errors import Unauthenticated


def refused() -> Unauthenticated:
    """The one error for every invalid credential, whatever is wrong with it."""
    return Unauthenticated(
        "no valid API key or token: send the header 'Authorization: Bearer KEY' "
        "(`tidegate keys create NAME` creates a key)"
    )


def bearer(authorization: bytes | None) -> str:
    """The credential after ``Bearer``, or ''."""
    # gRPC keeps the spaces around a value that HTTP strips, and perf_analyzer sends one.
    scheme, _, credential = (authorization or b"").decode("latin-1").strip(" ").partition(" ")
    return credential.strip() if scheme.lower() == "bearer" else ""

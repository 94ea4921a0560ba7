"""Exchanges as the edge makes them, for tests that call a API or the gateway directly."""

from gateway.http.request_context import RequestContext
from gateway.identity.principal import Principal
from gateway.policy.access import Access
from gateway.policy.gateway_toml import NO_FILE


def context_of(scope, receive, *, limit_bytes=2**20, deadline_s=5.0, access=None) -> RequestContext:
    """An context of a caller who may do what ``access`` says: everything, if it says nothing."""
    context = RequestContext(scope, receive, access or Access(NO_FILE), limit_bytes, deadline_s)
    context.principal = Principal("tester", "tester")
    return context

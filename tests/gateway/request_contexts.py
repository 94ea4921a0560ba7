"""Request contexts as the middleware creates them, for tests that call an API directly."""

from gateway.http.request_context import RequestContext
from gateway.policy.access import Access
from gateway.policy.gateway_toml import NO_FILE
from gateway.policy.principal import Principal


def context_of(scope, receive, *, limit_bytes=2**20, deadline_s=5.0, access=None) -> RequestContext:
    """The context of a caller with the rights of ``access``; without it, with all rights."""
    context = RequestContext(scope, receive, access or Access(NO_FILE), limit_bytes, deadline_s)
    context.principal = Principal("tester", "tester")
    return context

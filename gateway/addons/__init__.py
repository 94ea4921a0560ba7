"""What a gateway can do besides. An add-on is imported once something asks for it, not before.

The core names its add-ons here only, and imports none of them by itself: ``load`` does.
"""

from importlib import import_module
from typing import Any

# name -> the one thing that the core asks of it
ADDONS = {
    # by a setting: TIDEGATE_GRPC_PORT, _ADMIN_PORT, _REDIS_URL; an HTTP port in TIDEGATE_REPLICAS
    "grpc_door": "grpc_door.door:GrpcDoor",
    "admin": "admin:AdminListener",
    "redis_limits": "redis_limits.store:RedisStore",
    "relay": "relay.relay:Relay",
    # by gateway.toml: [audit] (unless record = "off"), [issuers], [certificates], [routes]
    "audit": "audit.log:AuditLog",
    "tokens": "tokens.tokens:Tokens",
    "certificates": "certificates:Certificates",
    "canary": "canary:choose",
    # by a model whose face binds chat or completions
    "openai_binding": "openai_text.binding:check",
    "openai_paths": "openai_text.description:describe",
    # by a request
    "multipart": "multipart:read_form",
    "generate": "generate.door:GenerateDoor",
    "openai_text": "openai_text.door:TextDoor",
    "nginx": "nginx:DecisionDoor",
}
_MODEL, _VERSION = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
# (method, path, add-on, its handler, which declares what it needs of its caller)
ROUTES = (
    *(
        (method, f"{prefix}/{name}", "generate", name)
        for method, name in (
            ("POST", "generate"),
            ("POST", "generate_stream"),
            ("GET", "config"),
            ("GET", "stats"),
        )
        for prefix in (_MODEL, _VERSION)
    ),
    ("POST", "/v1/chat/completions", "openai_text", "chat"),
    ("POST", "/v1/completions", "openai_text", "completions"),
    ("GET", "/internal/decide", "nginx", "decide"),
)


def load(name: str) -> Any:
    """The add-on's part that the core asks for; imports it at the first call."""
    module, _, part = ADDONS[name].partition(":")
    return getattr(import_module(f"{__name__}.{module}"), part)

"""What a gateway can do besides. An add-on is imported once something asks for it, not before.

The core names its add-ons here only, and imports none of them by itself: ``load`` does.
"""

from importlib import import_module
from typing import Any

# name -> the one thing that the core asks of it
ADDONS = {
    # by a setting: TIDEGATE_GRPC_PORT, _ADMIN_PORT, _REDIS_URL, _TLS_CERTIFICATE_FILE; an HTTP port
    # in TIDEGATE_REPLICAS
    "grpc_door": "grpc_door.door:GrpcDoor",
    "admin": "admin:AdminListener",
    "tls": "tls:Tls",
    "grpc_certificate": "tls:shown_to_grpc",
    "redis_limits": "redis_limits.store:RedisStore",
    "relay": "relay.relay:Relay",
    # by gateway.toml: [audit] (unless record = "off"), [issuers], [certificates], [routes],
    # [[limits]] of tokens
    "audit": "audit.log:AuditLog",
    "tokens": "tokens.tokens:Tokens",
    "certificates": "certificates:Certificates",
    "canary": "canary:choose",
    "metering": "metering:Meter",
    # by a model whose face binds chat or completions
    "openai_binding": "openai_text.binding:check",
    "openai_paths": "openai_text.description:describe",
    # by a request
    "multipart": "multipart:read_form",
    "openai_tokens": "openai_tokens:decoded",
    "generate": "generate.door:GenerateDoor",
    "openai_text": "openai_text.door:TextDoor",
    "nginx": "nginx:DecisionDoor",
}
_MODEL, _VERSION = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
# (method, path, add-on, its handler, which declares what it needs of its caller)
ROUTES = (
    ("GET", "/v2/models/stats", "generate", "every_stats"),  # before the core's: no model is meant
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

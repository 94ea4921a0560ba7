"""Who is calling, however that was shown, and what was granted to that caller."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from gateway.errors import Unauthenticated

# read: list, metadata, config, stats; infer: have a model run; admin: everything on the admin API
ACTIONS = ("read", "infer", "admin")
DEFAULT_TENANT = "default"


class Grant(NamedTuple):
    """At most these: roles and tenant (gateway.toml) bound it further. Models are globs."""

    tenant: str = DEFAULT_TENANT
    roles: tuple[str, ...] = ("user",)
    models: tuple[str, ...] = ("*",)
    scopes: tuple[str, ...] = ACTIONS


USER = Grant()
ADMIN = Grant(roles=("admin",))


@dataclass(frozen=True, slots=True)
class Principal:
    """``id`` is unique: a key's id, ``jwt:<issuer>:<sub>`` or ``cert:<name>``.

    At ``ends`` (seconds since the epoch) what showed the identity is no longer good, whatever
    happens until then.
    """

    id: str
    name: str
    grant: Grant = USER
    ends: float = math.inf

    @property
    def tenant(self) -> str:
        return self.grant.tenant


def refused() -> Unauthenticated:
    """The one answer to every identity that is not good, whatever is wrong with it."""
    return Unauthenticated(
        "no valid API key or token: send the header 'Authorization: Bearer KEY' "
        "(`tidegate keys create NAME` makes a key)"
    )


def bearer(authorization: bytes | None) -> str:
    """What stands behind ``Bearer``, or ''."""
    # gRPC leaves the blanks around a value that HTTP takes away, and perf_analyzer sends one.
    scheme, _, credential = (authorization or b"").decode("latin-1").strip(" ").partition(" ")
    return credential.strip() if scheme.lower() == "bearer" else ""

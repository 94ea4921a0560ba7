"""The caller, however it was identified, and what it has been granted."""

import math
from dataclasses import dataclass
from typing import NamedTuple

# read: list, metadata, config, stats; infer: run a model; admin: everything on the admin API
ACTIONS = ("read", "infer", "admin")
DEFAULT_TENANT = "default"


class Grant(NamedTuple):
    """The most that a caller may do: roles and tenant (gateway.toml) restrict it further. Models
    are globs."""

    tenant: str = DEFAULT_TENANT
    roles: tuple[str, ...] = ("user",)
    models: tuple[str, ...] = ("*",)
    scopes: tuple[str, ...] = ACTIONS


USER = Grant()
ADMIN = Grant(roles=("admin",))


@dataclass(frozen=True, slots=True)
class Principal:
    """``id`` is unique: a key's id, ``jwt:<issuer>:<sub>`` or ``cert:<name>``.

    At ``ends`` (seconds since the epoch) the credential expires, whatever happens until then.
    """

    id: str
    name: str
    grant: Grant = USER
    ends: float = math.inf

    @property
    def tenant(self) -> str:
        return self.grant.tenant

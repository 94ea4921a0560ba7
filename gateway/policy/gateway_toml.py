"""``gateway.toml``: replicas, tenants, roles, limits, issuers, routes. Validated whole, or refused.

docs/policy.md shows every table. A fault is one line: file, line, key, what it should be.
"""

import re
import tomllib
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    IPvAnyNetwork,
    ValidationError,
)

from gateway.limits.limit import Glob, Limit
from gateway.policy.toml_lines import KeyPath, line_of
from modelspec.address import require_replica

Fault = tuple[KeyPath, str]


class PolicyError(ValueError):
    """The message names the file, the line, the key, and what it should hold."""


def is_trustworthy(url: str) -> bool:
    """Whether keys may be read from there: https, or http on this machine."""
    parts = urlsplit(url)
    if parts.scheme == "http":
        return parts.hostname in ("localhost", "127.0.0.1", "::1")
    return parts.scheme == "https" and bool(parts.hostname)


def _url(text: str) -> str:
    if not is_trustworthy(text):
        raise ValueError("must be an https:// URL (http:// on loopback only)")
    return text


NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
Name = Annotated[str, Field(pattern=rf"^{NAME}$")]
Action = Literal["read", "infer", "admin"]
Actions = Annotated[list[Action], Field(min_length=1)]
Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]
Url = Annotated[str, AfterValidator(_url)]
Percent = Annotated[int, Field(ge=0, le=100)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Tenant(_Table):
    """What the tenant as a whole may reach."""

    models: list[Glob]


class Role(_Table):
    actions: Actions
    models: list[Glob] = ["*"]


class Issuer(_Table):
    """Whose tokens are taken, and what their claims give."""

    issuer: Url
    audience: Annotated[list[str], Field(min_length=1)]
    algorithms: Annotated[list[Algorithm], Field(min_length=1)] = ["RS256"]
    jwks_uri: Url | None = None  # without it: by OIDC discovery
    types: list[str] = ["JWT", "at+jwt"]  # the header's typ; '' takes tokens that have none
    leeway_s: Annotated[int, Field(ge=0, le=60)] = 30
    tenant: Name | None = None
    tenant_claim: str | None = None
    roles_claim: str | None = None
    roles: dict[str, Name] = {}  # a value of that claim -> a role of ours
    default_roles: list[Name] = []
    models_claim: str | None = None


class Certificate(_Table):
    """What the holder of a client certificate is granted."""

    tenant: Name = "default"
    roles: list[Name] = ["user"]
    models: list[Glob] = ["*"]
    scopes: Actions = ["read", "infer", "admin"]


class Proxy(_Table):
    """Who may say which certificate a client showed, and in which header."""

    trusted: Annotated[list[IPvAnyNetwork], Field(min_length=1)]
    certificate_header: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")] = "x-client-cert-subject"


class Audit(_Table):
    record: Literal["all", "denied", "off"] = "all"


class Route(BaseModel):
    """Which share of a pipeline's load goes to other pipelines: percent by their names, ``per``
    caller or ``per`` request."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    __pydantic_extra__: dict[str, Percent]

    per: Literal["caller", "request"] = "caller"

    @property
    def weights(self) -> dict[str, int]:
        return self.__pydantic_extra__


USER_ROLE, ADMIN_ROLE = Role(actions=["read", "infer"]), Role(actions=["read", "infer", "admin"])


class Rules(_Table):
    """The whole file."""

    replicas: list[Annotated[str, AfterValidator(require_replica)]] = []
    tenants: dict[Name, Tenant] = {}
    roles: dict[Name, Role] = {}
    limits: list[Limit] = []
    issuers: dict[Name, Issuer] = {}
    certificates: dict[str, Certificate] = {}
    proxy: Proxy | None = None
    routes: dict[Name, Route] = {}
    audit: Audit = Audit()

    def role(self, name: str) -> Role | None:
        """As the file says, else as built in; ``admin`` cannot be changed."""
        return self.roles.get(name) or {"user": USER_ROLE, "admin": ADMIN_ROLE}.get(name)

    def unknown(self, tenant: str | None, roles: Iterable[str]) -> list[str]:
        """A line for each of these that is nowhere defined."""
        faults = [f"there is no [roles.{name}]" for name in roles if not self.role(name)]
        if tenant and self.tenants and tenant not in self.tenants:
            faults.append(f"there is no [tenants.{tenant}]")
        return faults


# Without a file: one tenant, and a key may do everything that it was not itself denied.
NO_FILE = Rules(roles={"user": ADMIN_ROLE})


def parse_rules(text: str, source: str) -> Rules:
    """The rules in a gateway.toml; PolicyError names the first line that is wrong."""
    text = text.removeprefix("\ufeff")  # some editors begin a file with it
    try:
        return _parsed(text, source)
    except PolicyError:
        raise
    except RecursionError:
        why = "lists or tables are nested too deep"
    except (ValueError, OverflowError) as error:
        why = str(error)
    raise PolicyError(f"{source} line {_unreadable_line(text)}: {why}")


def _unreadable_line(text: str) -> int:
    """The line at which the parser gives up for another reason than that it is no TOML."""
    lines = text.splitlines(keepends=True)

    def gives_up(count: int) -> bool:
        try:
            tomllib.loads("".join(lines[:count]))
        except tomllib.TOMLDecodeError:
            return False
        except (ValueError, RecursionError):
            return True
        return False

    return 1 + bisect_left(range(1, len(lines)), True, key=gives_up)


def _parsed(text: str, source: str) -> Rules:
    try:
        tables = tomllib.loads(text)
        rules = Rules.model_validate(tables)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        where = line[1] if line else text.count("\n") + 1
        raise PolicyError(f"{source} line {where}: {error}") from None
    except ValidationError as error:
        faults: list[Fault] = [(each["loc"], _worded(each)) for each in error.errors()]
    else:
        faults = list(_contradictions(rules))
    if not faults:
        return rules
    placed = sorted((line_of(text, path), path, message) for path, message in faults)
    line_number, path, message = placed[0]
    key = ".".join(str(part) for part in path if part != "[key]")
    raise PolicyError(f"{source} line {line_number}: {key}: {message}")


def _worded(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "there is no such key: see docs/policy.md for those there are"
    return str(error["msg"]).removeprefix("Value error, ")


def _contradictions(rules: Rules) -> Iterator[Fault]:
    """What no table shows by itself."""
    if "admin" in rules.roles:
        yield ("roles", "admin"), "is built in and cannot be changed: choose another name"
    for name, issuer in rules.issuers.items():
        yield from _issuer_faults(rules, name, issuer)
    for name, holder in rules.certificates.items():
        for fault in rules.unknown(holder.tenant, holder.roles):
            yield ("certificates", name), fault
    for name, route in rules.routes.items():
        for target in route.weights:
            if not re.fullmatch(NAME, target):
                yield ("routes", name, target), f"should match pattern '{NAME}'"
            if not target.startswith(f"{name}."):
                yield ("routes", name, target), f"must be called {name}.SOMETHING"
        if sum(route.weights.values()) > 100:
            yield ("routes", name), "the weights are percent: their sum must not be over 100"


def _issuer_faults(rules: Rules, name: str, issuer: Issuer) -> Iterator[Fault]:
    path: KeyPath = ("issuers", name)
    if (issuer.tenant is None) == (issuer.tenant_claim is None):
        yield path, "needs either tenant or tenant_claim"
    if issuer.tenant_claim and not rules.tenants:
        yield (*path, "tenant_claim"), "needs a [tenants.NAME] for every tenant that may be claimed"
    for key, roles in (("roles", issuer.roles.values()), ("default_roles", issuer.default_roles)):
        for fault in rules.unknown(None, roles):
            yield (*path, key), fault
    for fault in rules.unknown(issuer.tenant, ()):
        yield (*path, "tenant"), fault
    first = next(n for n, other in rules.issuers.items() if other.issuer == issuer.issuer)
    if first != name:
        yield (*path, "issuer"), f"is [issuers.{first}] already"

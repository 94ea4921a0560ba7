"""``gateway.toml``: replicas, tenants, roles, limits, issuers, routes. Validated as a whole.

docs/policy.md shows every table. An error is one line: file, line, key, and what it should be.
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
from modelspec.address import require_replicas

Fault = tuple[KeyPath, str]


class PolicyError(ValueError):
    """The message names the file, the line, the key, and what it should contain."""


def is_trustworthy(url: str) -> bool:
    """Whether keys may be fetched from there: https, or http on this machine."""
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
    """The models that the tenant as a whole may use, and its share of a busy one."""

    models: list[Glob]
    # Twice the weight is twice the share, while other tenants wait for the same model.
    weight: Annotated[float, Field(gt=0, le=1000, strict=False)] = 1.0


class Role(_Table):
    actions: Actions
    models: list[Glob] = ["*"]


class Issuer(_Table):
    """An issuer whose tokens are accepted, and what their claims grant."""

    issuer: Url
    audience: Annotated[list[str], Field(min_length=1)]
    algorithms: Annotated[list[Algorithm], Field(min_length=1)] = ["RS256"]
    jwks_uri: Url | None = None  # None: found by OIDC discovery
    types: list[str] = ["JWT", "at+jwt"]  # the header's typ; '' accepts tokens that have none
    leeway_s: Annotated[int, Field(ge=0, le=60)] = 30
    tenant: Name | None = None
    tenant_claim: str | None = None
    roles_claim: str | None = None
    roles: dict[str, Name] = {}  # a value of that claim -> a role of gateway.toml
    default_roles: list[Name] = []
    models_claim: str | None = None


class Certificate(_Table):
    """What the holder of a client certificate is granted."""

    tenant: Name = "default"
    roles: list[Name] = ["user"]
    models: list[Glob] = ["*"]
    scopes: Actions = ["read", "infer", "admin"]


class Proxy(_Table):
    """The proxies that may name the client's certificate, and the header in which they do."""

    trusted: Annotated[list[IPvAnyNetwork], Field(min_length=1)]
    certificate_header: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")] = "x-client-cert-subject"


class Audit(_Table):
    record: Literal["all", "denied", "off"] = "all"


class Pipeline(_Table):
    """``fallback``: the pipeline that answers while this one has nowhere to go."""

    fallback: Name


class Route(BaseModel):
    """The shares of a pipeline's load that go to other pipelines: name -> percent, ``per`` caller
    or ``per`` request."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    __pydantic_extra__: dict[str, Percent]

    per: Literal["caller", "request"] = "caller"

    @property
    def weights(self) -> dict[str, int]:
        return self.__pydantic_extra__


class Shadow(_Table):
    """Which pipeline gets a share of another one's requests once more, to compare the responses."""

    to: Name
    percent: Percent


USER_ROLE, ADMIN_ROLE = Role(actions=["read", "infer"]), Role(actions=["read", "infer", "admin"])


class Rules(_Table):
    """The whole file."""

    replicas: list[Annotated[str, AfterValidator(require_replicas)]] = []
    tenants: dict[Name, Tenant] = {}
    roles: dict[Name, Role] = {}
    limits: list[Limit] = []
    issuers: dict[Name, Issuer] = {}
    certificates: dict[str, Certificate] = {}
    proxy: Proxy | None = None
    routes: dict[Name, Route] = {}
    pipelines: dict[Name, Pipeline] = {}
    shadows: dict[Name, Shadow] = {}
    audit: Audit = Audit()

    def role(self, name: str) -> Role | None:
        """The file's role, else the built-in one; ``admin`` cannot be redefined."""
        return self.roles.get(name) or {"user": USER_ROLE, "admin": ADMIN_ROLE}.get(name)

    def weight(self, tenant: str) -> float:
        """The tenant's share of a busy model, relative to the others'."""
        table = self.tenants.get(tenant)
        return table.weight if table else 1.0

    def unknown(self, tenant: str | None, roles: Iterable[str]) -> list[str]:
        """A message for each of these that is not defined."""
        faults = [f"there is no [roles.{name}]" for name in roles if not self.role(name)]
        if tenant and self.tenants and tenant not in self.tenants:
            faults.append(f"there is no [tenants.{tenant}]")
        return faults


# Without a file: one tenant, and a key may do everything that the key itself does not exclude.
NO_FILE = Rules(roles={"user": ADMIN_ROLE})


def parse_rules(text: str, source: str) -> Rules:
    """The rules in a gateway.toml. Raises PolicyError, which names the first line that is wrong."""
    text = text.removeprefix("\ufeff")  # some editors start a file with it
    try:
        return _parse(text, source)
    except PolicyError:
        raise
    except RecursionError:
        reason = "lists or tables are nested too deeply"
    except (ValueError, OverflowError) as error:
        reason = str(error)
    raise PolicyError(f"{source} line {_unreadable_line(text)}: {reason}")


def _unreadable_line(text: str) -> int:
    """The line at which the parser fails for a reason other than invalid TOML."""
    lines = text.splitlines(keepends=True)

    def fails(count: int) -> bool:
        try:
            tomllib.loads("".join(lines[:count]))
        except tomllib.TOMLDecodeError:
            return False
        except (ValueError, RecursionError):
            return True
        return False

    return 1 + bisect_left(range(1, len(lines)), True, key=fails)


def _parse(text: str, source: str) -> Rules:
    try:
        tables = tomllib.loads(text)
        rules = Rules.model_validate(tables)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        line_number = line[1] if line else text.count("\n") + 1
        raise PolicyError(f"{source} line {line_number}: {error}") from None
    except ValidationError as error:
        faults: list[Fault] = [(details["loc"], _message(details)) for details in error.errors()]
    else:
        faults = list(_contradictions(rules))
    if not faults:
        return rules
    line_number, path, message = min((line_of(text, path), path, fault) for path, fault in faults)
    key = ".".join(str(part) for part in path if part != "[key]")
    raise PolicyError(f"{source} line {line_number}: {key}: {message}")


def _message(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "there is no such key: docs/policy.md lists the keys"
    return str(error["msg"]).removeprefix("Value error, ")


def _contradictions(rules: Rules) -> Iterator[Fault]:
    """Faults that only show when the tables are compared."""
    if "admin" in rules.roles:
        yield ("roles", "admin"), "is built in and cannot be changed: choose another name"
    for name, issuer in rules.issuers.items():
        yield from _issuer_faults(rules, name, issuer)
    for name, holder in rules.certificates.items():
        for fault in rules.unknown(holder.tenant, holder.roles):
            yield ("certificates", name), fault
    for name, pipeline in rules.pipelines.items():
        if pipeline.fallback == name:
            yield ("pipelines", name, "fallback"), "is the pipeline itself: name another one"
        elif pipeline.fallback in rules.pipelines:
            yield (
                ("pipelines", name, "fallback"),
                f"[pipelines.{pipeline.fallback}] has a fallback of its own, which would not be "
                "asked: name a pipeline that has none",
            )
    for name, route in rules.routes.items():
        for canary in route.weights:
            if not re.fullmatch(NAME, canary):
                yield ("routes", name, canary), f"should match pattern '{NAME}'"
            if not canary.startswith(f"{name}."):
                yield ("routes", name, canary), f"must be called {name}.SOMETHING"
        if sum(route.weights.values()) > 100:
            yield ("routes", name), "the weights are percentages: their sum must not exceed 100"
    for name, shadow in rules.shadows.items():
        if shadow.to == name:
            yield ("shadows", name, "to"), "must be another pipeline, or a version: NAME.v7"


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

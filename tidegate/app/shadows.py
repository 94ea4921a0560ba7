"""The shadow of a pipeline: the version that is served beside it for that, ``[shadows]`` in the
``gateway.toml`` of each stack that serves the repository, and what the gateway counted."""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomlkit

from modelspec.files import atomic_write
from serving.errors import PublishFailed, ServingError
from serving.publish.canary import canary_name, start, stop
from serving.repository.model_repository import ModelRepository
from tidegate.app import rollout
from tidegate.app.canaries import Canaries, default_version, policies
from tidegate.app.progress import Progress
from tidegate.app.routes_file import locked, read_shadow, require_taken, wait_until_taken
from tidegate.app.toml_file import edited
from tidegate.app.top import Look, quantile

if TYPE_CHECKING:
    from tidegate.app.paths import Paths

LEAST_COMPARED = 100
REQUESTS, SECONDS = "tidegate_shadow_requests_total", "tidegate_shadow_seconds_bucket"
RESULTS = ("agrees", "differs", "failed", "dropped")


@dataclass(frozen=True)
class ShadowOptions:
    """``percent`` 0 ends the shadow. ``to`` is another pipeline; without it the shadow is a version
    of this one, ``version`` or (None) the one that is a shadow or canary, else the newest that is
    not active."""

    name: str
    percent: int
    version: int | None = None
    to: str = ""


@dataclass(frozen=True)
class ShadowChange:
    """The shadow after a change ('' if it ended), whether its version was unloaded, and which
    servers know of it."""

    pipeline: str
    repository: str
    shadow: str
    percent: int
    gone: list[str]
    served_by: list[str]
    no_answer_from: list[str]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> Iterator[str]:
        if self.shadow:
            yield (
                f"{self.shadow} is the shadow of {self.pipeline}: it gets {self.percent} % of its "
                f"requests once more. `tidegate shadow {self.pipeline}` says how it compares"
            )
        else:
            unloaded = f"; {', '.join(self.gone)} was unloaded" if self.gone else ""
            yield f"{self.pipeline} has no shadow any more{unloaded}"
        if self.no_answer_from:
            yield f"no answer from {', '.join(self.no_answer_from)}: run the same command again"


def set_shadow(
    options: ShadowOptions,
    paths: "Paths",
    report: Progress,
    grace_s: float,
    addresses: Sequence[str],
) -> ShadowChange:
    """Start, change or end the shadow of a pipeline, on every server of the repository. Raises
    PublishFailed."""
    repository, name = ModelRepository(paths.repository), options.name
    repository.require_published(name)
    with rollout.deployment(paths, repository, report, grace_s, addresses) as deployment:
        files = policies(paths, rollout.running(paths, repository))
        canaries = Canaries(repository, name, files)
        before = {read_shadow(path, name) for path in files} - {""}
        gone: list[str] = []
        shadow, is_new = "", False
        if options.percent:
            shadow = options.to
            if not shadow:
                shadow = canary_name(name, options.version or default_version(canaries))
            if before - {shadow}:
                raise PublishFailed(
                    f"{', '.join(sorted(before))} is the shadow of {name}, and there is only one "
                    f"at a time: tidegate shadow {name} --percent 0 ends it"
                )
            if options.to:
                repository.require_published(options.to)
            else:
                is_new = shadow not in canaries.loaded()
                start(deployment, name, int(shadow.removeprefix(f"{name}.v")))
        elif not before:
            raise PublishFailed(f"{name} has no shadow")
        try:
            for path in files:
                _write(path, name, shadow, options.percent)
        except (OSError, ServingError):
            if is_new and shadow in canaries.loaded():
                stop(deployment, name, canaries.loaded()[shadow])
            raise
        for path in files:
            wait_until_taken(path)
        if not options.percent:
            loaded, routed = canaries.loaded(), canaries.routed()
            for model in sorted(before & set(loaded) - set(routed)):
                stop(deployment, name, loaded[model])
                gone.append(model)
        return ShadowChange(
            name,
            str(repository.path),
            shadow,
            options.percent,
            gone,
            [replica.address for replica in deployment.replicas],
            list(deployment.silent),
        )


def _write(path: Path, name: str, shadow: str, percent: int) -> None:
    """Make ``[shadows.NAME]`` say so; remove it without a ``shadow``. Raises ServingError for a
    file that a gateway would refuse."""

    def edit(document: tomlkit.TOMLDocument) -> None:
        tables: Any = document.setdefault("shadows", tomlkit.table(is_super_table=True))
        if shadow:
            table = tables.setdefault(name, tomlkit.table())
            table["to"], table["percent"] = shadow, percent
            return
        tables.pop(name, None)
        if not tables:
            document.remove("shadows")

    with locked(path):
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        try:
            changed = edited(text, edit)
            tomllib.loads(changed)
        except ValueError as error:
            raise ServingError(f"{path} is not TOML, and was not changed: {error}") from error
        require_taken(path, changed)
        atomic_write(path, changed, mode=0o600)


@dataclass(frozen=True)
class ShadowReport:
    """What came of the requests that were drawn for the shadow since the gateway's start, and how
    long those took that it answered, at the pipeline itself and at the shadow."""

    pipeline: str
    shadow: str
    percent: int
    agrees: int
    differs: int
    failed: int
    dropped: int
    primary_p50_ms: float | None
    primary_p99_ms: float | None
    shadow_p50_ms: float | None
    shadow_p99_ms: float | None

    @property
    def compared(self) -> int:
        return self.agrees + self.differs

    @property
    def verdict(self) -> str:
        """``differs`` as soon as one response does, or the shadow failed; ``agrees`` after
        ``LEAST_COMPARED`` that do; else ``undecided``."""
        if self.differs or self.failed:
            return "differs"
        return "agrees" if self.compared >= LEAST_COMPARED else "undecided"

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "compared": self.compared, "verdict": self.verdict}

    def lines(self) -> Iterator[str]:
        yield (
            f"{self.shadow} got {self.percent} % of the requests of {self.pipeline}: "
            f"{self.compared:,} compared, {self.differs:,} differ, {self.failed:,} failed, "
            f"{self.dropped:,} dropped"
        )
        if self.compared:
            yield (
                f"  at the server: {self.pipeline} p50 {_ms(self.primary_p50_ms)}, p99 "
                f"{_ms(self.primary_p99_ms)}; {self.shadow} p50 {_ms(self.shadow_p50_ms)}, p99 "
                f"{_ms(self.shadow_p99_ms)}"
            )
        if self.verdict == "undecided":
            yield f"  undecided: at least {LEAST_COMPARED} have to be compared"


def report_of(name: str, policy: Mapping[str, Any], look: Look) -> ShadowReport:
    """The report on the shadow that the gateway's policy in force has for the pipeline. Raises
    ServingError if it has none."""
    table = policy["rules"]["shadows"].get(name)
    if not table:
        raise ServingError(
            f"{name} has no shadow in this gateway: start one with `tidegate shadow {name} "
            "--percent 10`"
        )
    shadow = table["to"]
    counts = dict.fromkeys(RESULTS, 0)
    for labels, value in look.samples.get(REQUESTS, ()):
        if (labels["model"], labels["shadow"]) == (name, shadow):
            counts[labels["result"]] += int(value)
    times = [
        _quantile_ms(look, name, shadow, arm, share)
        for arm in ("primary", "shadow")
        for share in (0.5, 0.99)
    ]
    return ShadowReport(name, shadow, table["percent"], *counts.values(), *times)


def _quantile_ms(look: Look, name: str, shadow: str, arm: str, share: float) -> float | None:
    selected = {"model": name, "shadow": shadow, "arm": arm}
    buckets: dict[float, float] = {}
    for labels, value in look.samples.get(SECONDS, ()):
        if selected.items() <= labels.items():
            bound = inf if labels["le"] == "+Inf" else float(labels["le"])
            buckets[bound] = buckets.get(bound, 0.0) + value
    seconds = quantile(buckets, share)
    return None if seconds is None else round(1000 * seconds, 3)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"

"""The report of a sign-off: JSON with every figure, a page for people, and a summary in Markdown.

The page and the summary are made of the JSON alone, so that they can be made again of a stored one.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from loadtests.signoff.charts import Line, Mark, chart
from loadtests.signoff.confidence import Outcome
from loadtests.signoff.cross_check import Client, CrossCheck
from loadtests.signoff.procedure import Result
from loadtests.signoff.samples import Samples
from loadtests.signoff.steps import Step
from modelspec.machine import cpu_name, git_commit, usable_cores

PERCENTILES = (0.5, 0.9, 0.95, 0.99, 0.999)
WORDS = {"pass": "SIGNED", "fail": "NOT SIGNED", "undecided": "UNDECIDED"}
CURVE = (0.01, 0.05, *np.arange(0.1, 0.9, 0.1), 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9999)
Json = dict[str, Any]


@dataclass(frozen=True)
class Circumstances:
    """Of what the figures are. ``versions`` are those that were served, by pipeline."""

    target: str
    profile: str
    began: str  # ISO 8601
    seconds: float
    versions: dict[str, tuple[str, ...]]
    objectives: str  # the file, as it was


def overall(outcomes: Sequence[Outcome]) -> Outcome:
    """Not signed if one is not, undecided if one is; signed only if all are."""
    if Outcome.FAIL in outcomes:
        return Outcome.FAIL
    if Outcome.UNDECIDED in outcomes or not outcomes:
        return Outcome.UNDECIDED
    return Outcome.PASS


def document(results: Sequence[Result], circumstances: Circumstances, root: Path) -> Json:
    """Everything that was measured, as plain JSON values; times in milliseconds."""
    outcome = overall([result.outcome for result in results])
    return {
        "verdict": outcome.value,
        "signed": outcome is Outcome.PASS,
        "target": circumstances.target,
        "profile": circumstances.profile,
        "began": circumstances.began,
        "seconds": round(circumstances.seconds, 1),
        "machine": {"cpu": cpu_name(), "cores": usable_cores()},
        "commit": git_commit(root, short=True),
        "objectives_file": circumstances.objectives,
        "pipelines": [
            {**_pipeline(result), "versions": list(circumstances.versions[result.slo.pipeline])}
            for result in results
        ],
    }


def markdown(report: Json) -> str:
    """The verdict first, then each objective and why."""
    machine = report["machine"]
    parts = [f"# Capacity: {WORDS[report['verdict']]}", ""]
    for pipeline in report["pipelines"]:
        parts += [
            f"## {pipeline['name']}: {WORDS[pipeline['verdict']]}",
            "",
            sentence(pipeline),
            "",
            f"| objective | limit | measured at {pipeline['rate_per_s']:g}/s | verdict | why |",
            "|---|---|---|---|---|",
            *(
                f"| {line['name']} | {line['objective']} | {line['measured']} | "
                f"{line['verdict'].upper()} | {line['why']} |"
                for line in pipeline["objectives"]
            ),
            "",
            _sentences(pipeline),
            generator(pipeline),
            *_times_list(pipeline),
            *_tenants_table(pipeline),
            "",
        ]
    parts.append(
        f"Load: open loop (arrivals: {arrivals(report)}), latency from the intended time, against "
        f"{report['target']}, from {machine['cores']} cores of {machine['cpu']}"
        + (f", commit {report['commit']}." if report["commit"] else ".")
    )
    return "\n".join([*parts, ""])


def _sentences(pipeline: Json) -> str:
    said = [capacity(pipeline), scaling_sentence(pipeline), killed_sentence(pipeline)]
    said.append((pipeline["cross_check"] or {}).get("sentence", ""))
    return " ".join(filter(None, said))


def _times_list(pipeline: Json) -> list[str]:
    """Where the time goes."""
    times, note = pipeline["where_the_time_goes_ms"], pipeline["where_the_time_goes_note"]
    if not times and not note:
        return []
    rows = [f"- {name}: {ms:.2f} ms" for name, ms in times.items()]
    return ["", "Where the mean request spends its time:" if rows else "", *rows, "", note]


def _tenants_table(pipeline: Json) -> list[str]:
    tenants = (pipeline["at_the_target"] or {}).get("tenants")
    if not tenants:
        return []
    return [
        "",
        "| tenant | requests | refused | failed otherwise | p99 |",
        "|---|---|---|---|---|",
        *(
            f"| {own['name']} | {own['requests']} | {own['refused']} | "
            f"{own['failed'] - own['refused']} | {milliseconds_of(own['p99_ms'])} |"
            for own in tenants
        ),
    ]


def milliseconds_of(value: float | None) -> str:
    return "nothing" if value is None else f"{value:.4g} ms"


def arrivals(report: Json) -> str:
    """How requests arrived: of each pipeline, where they differ."""
    kinds = {pipeline["name"]: pipeline["arrivals"] for pipeline in report["pipelines"]}
    if len(set(kinds.values())) > 1:
        return "; ".join(f"{name}: {kind}" for name, kind in kinds.items())
    return next(iter(kinds.values()), "no")


def sentence(pipeline: Json) -> str:
    """The reason and the first thing to change."""
    advice = pipeline["first_thing_to_change"]
    reason: str = pipeline["reason"]
    return f"{reason[:1].upper()}{reason[1:]}." + f" First: {advice}." * bool(advice)


def capacity(pipeline: Json) -> str:
    """What rate holds, in a sentence."""
    knee = pipeline["knee"]
    if not knee:
        return "The highest rate was not searched."
    if not knee["held_per_s"]:
        return "No rate that was tried held every objective."
    held = f"Highest rate that held every objective: {knee['held_per_s']:.4g}/s"
    if above := knee["missed_per_s"]:
        return f"{held} (missed at {above:.4g}/s)."
    if pipeline["search_ended"]:
        return f"{held}; above it {pipeline['search_ended']}."
    return f"{held}, the highest that was tried."


def generator(pipeline: Json) -> str:
    """What the load generator itself did at the target; '' before that."""
    at_target = pipeline["at_the_target"]
    if not at_target:
        return ""
    own = at_target["generator"]
    steady = "" if pipeline["became_steady"] else " Latencies had not settled after the warm-up."
    return (
        f"The load generator sent {own['lag_p99_ms']:.3g} ms late at its p99, and used "
        f"{own['cpu']:.0%} of a core.{steady}"
    )


def html(report: Json) -> str:
    """The report as one page that needs nothing else: no script, no font, no network."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8")
    charts = [_charts(pipeline) for pipeline in report["pipelines"]]
    return environment.from_string(template).render(
        report=report,
        charts=charts,
        words=WORDS,
        sentence=sentence,
        capacity=capacity,
        scaling_sentence=scaling_sentence,
        killed_sentence=killed_sentence,
        generator=generator,
        arrivals=arrivals,
        milliseconds_of=milliseconds_of,
    )


def write(report: Json, folder: Path) -> list[Path]:
    """Write ``report.html``, ``report.json`` and ``report.md``; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        folder / "report.html": html(report),
        folder / "report.json": json.dumps(report, indent=2, ensure_ascii=False) + "\n",
        folder / "report.md": markdown(report),
    }
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    return list(files)


def _pipeline(result: Result) -> Json:
    slo = result.slo
    return {
        "name": slo.pipeline,
        "verdict": result.outcome.value,
        "reason": result.reason,
        "first_thing_to_change": result.advice,
        "rate_per_s": slo.tested_rate,
        "arrivals": result.trace or str(slo.arrivals),
        "limits": [
            {"name": limit.name, "of": limit.of, "share": limit.share, "ms": 1000 * limit.seconds}
            for limit in slo.limits
        ],
        "objectives": [
            {
                "name": line.name,
                "objective": line.objective,
                "measured": line.measured,
                "verdict": line.outcome.value,
                "why": line.why,
                "requests": line.counted.requests if line.counted else None,
                "misses": line.counted.misses if line.counted else None,
                "more_requests_needed": line.counted.more if line.counted else None,
            }
            for line in result.lines
        ],
        "became_steady": result.is_steady,
        "knee": _knee(result),
        "search_ended": result.search_ended,
        "frontier_per_s": {f"p99 <= {ms} ms": rate for ms, rate in result.frontier().items()},
        "windows": [_samples(window) for window in result.windows],
        "at_the_target": _samples(result.target) if result.target else None,
        "curve_ms": _curve(result.target) if result.target else [],
        "timeline": _timeline(result.target) if result.target else [],
        "where_the_time_goes_ms": _times(result.target, result.steps) if result.target else {},
        "where_the_time_goes_note": _times_note(result),
        "memory": _memory(result),
        "overload": _overload(result),
        "scaling": _scaling(result),
        "replica_killed": _killed(result),
        "cross_check": _cross_check(result.cross_check),
    }


def _knee(result: Result) -> Json | None:
    if result.knee is None:
        return None
    return {
        "held_per_s": result.knee.held,
        "missed_per_s": result.knee.missed,
        "trials": [
            {"rate_per_s": trial.rate, "windows_held": list(trial.windows)}
            for trial in result.knee.trials
        ],
    }


def _samples(samples: Samples) -> Json:
    lag_s = float(np.quantile(samples.lag_s, 0.99)) if samples.requests else 0.0
    streamed = {
        f"{of}_p{100 * share:g}_ms": _ms(samples.percentile_s(share, of))
        for of in ("first_token", "gap")
        if not np.isnan(samples.parts_s[of]).all()
        for share in PERCENTILES
    }
    return {
        "rate_per_s": samples.rate,
        "requests": samples.requests,
        "failed": int(samples.failed.sum()),
        "errors": dict(samples.errors),
        "seconds": round(samples.duration_s, 1),
        **{f"p{100 * share:g}_ms": _ms(samples.percentile_s(share)) for share in PERCENTILES},
        **streamed,
        "tenants": [_tenant(name, own) for name, own in samples.by("tenant").items()],
        "generator": {"lag_p99_ms": _ms(lag_s), "cpu": round(samples.cpu, 3)},
    }


def _tenant(name: str, own: Samples) -> Json:
    """What one tenant met."""
    return {
        "name": name,
        "requests": own.requests,
        "refused": _refused(own),
        "failed": int(own.failed.sum()),
        "errors": dict(own.errors),
        "p99_ms": _ms(own.percentile_s(0.99)),
    }


def _refused(samples: Samples) -> int:
    return sum(count for fault, count in samples.errors.items() if fault in _REFUSALS)


def _curve(samples: Samples) -> list[tuple[float, float | None]]:
    """Percentiles and their milliseconds."""
    return [(round(100 * share, 3), _ms(samples.percentile_s(share))) for share in CURVE]


def _timeline(samples: Samples) -> list[Json]:
    """What was due in each second."""
    rows = []
    for second in range(round(samples.duration_s)):
        chosen = (samples.due_s >= second) & (samples.due_s < second + 1)
        good = samples.latency_s[chosen & ~samples.failed]
        rows.append(
            {
                "second": second,
                "requests": int(chosen.sum()),
                "failed": int(samples.failed[chosen].sum()),
                "p50_ms": _ms(float(np.median(good))) if good.size else None,
                "worst_ms": _ms(float(good.max())) if good.size else None,
            }
        )
    return rows


def _times(samples: Samples, steps: Sequence[Step]) -> dict[str, float]:
    """Where the mean request that was answered spends its time: as far as the gateway says it
    (Server-Timing), and Triton (its statistics)."""
    good = ~samples.failed
    if not good.any():
        return {}
    gateway, upstream = (samples.parts_s[part] for part in ("gateway", "upstream"))
    said = good & ~np.isnan(gateway) & ~np.isnan(upstream)
    inside_s = {f"queue: {step.model}": step.queue_s for step in steps}
    inside_s |= {f"compute: {step.model}": step.compute_s for step in steps}
    if said.any():
        upstream_s = float(upstream[said].mean())
        rest = samples.latency_s[said] - samples.lag_s[said] - gateway[said] - upstream[said]
        parts_s = {
            "waiting to be sent": float(samples.lag_s[said].mean()),
            "client and network": float(rest.mean()),
            "gateway": float(gateway[said].mean()),
        }
        left = "Triton: the rest" if steps else "Triton: queue and compute"
    elif steps:  # a stream, or gRPC
        parts_s = {"waiting to be sent": float(samples.lag_s[good].mean())}
        upstream_s = float((samples.latency_s[good] - samples.lag_s[good]).mean())
        left = "gateway, network and the rest"
    else:
        return {}
    parts_s |= inside_s
    parts_s[left] = upstream_s - sum(inside_s.values())
    return {name: 1000 * max(0.0, seconds) for name, seconds in parts_s.items()}


def _times_note(result: Result) -> str:
    """What is missing of where the time goes, and why."""
    if result.target is None or result.steps:
        return ""
    return (
        "Triton's statistics could not be read, or have nothing of this pipeline: its queue and "
        "compute stand together."
    )


def _scaling(result: Result) -> Json | None:
    scaling = result.scaling
    if scaling is None:
        return None
    needed = scaling.replicas_for(result.slo.tested_rate)
    largest = max(replicas for replicas, _ in scaling.measured)
    return {
        "measured_per_s": [list(point) for point in scaling.measured],
        "rate_of_one_per_s": scaling.rate,
        "contention": scaling.contention,
        "coherency": scaling.coherency,
        "fitted_per_s": [
            [replicas, scaling.at(replicas), *scaling.interval(replicas)]
            for replicas in range(1, 2 * largest + 1)
        ],
        "replicas_for_the_rate": needed,
        "is_extrapolated": needed is not None and scaling.is_extrapolated(needed),
    }


def scaling_sentence(pipeline: Json) -> str:
    """How many replicas the rate needs; '' if that was not measured."""
    scaling = pipeline["scaling"]
    if not scaling:
        return ""
    needed, rate = scaling["replicas_for_the_rate"], pipeline["rate_per_s"]
    law = f"contention {scaling['contention']:.3f}, coherency {scaling['coherency']:.4f}"
    if needed is None:
        return f"No number of replicas carries {rate:g}/s here ({law})."
    guess = ", far beyond what was measured: a guess" if scaling["is_extrapolated"] else ""
    return f"Replicas for {rate:g}/s: {needed} ({law}{guess})."


def _memory(result: Result) -> Json | None:
    growth = result.drift
    if not result.memory:
        return None
    return {
        "seconds": [round(seconds, 1) for seconds, _ in result.memory],
        "mib": [round(mib, 1) for _, mib in result.memory],
        "mib_per_min": growth.mib_per_min if growth else None,
        "interval": [growth.low, growth.high] if growth else None,
    }


def _overload(result: Result) -> Json | None:
    if result.overload is None:
        return None
    overload, samples = result.overload, result.overload.samples
    return {
        **_samples(samples),
        "good_per_s": None if overload.fault else round(overload.good_per_s, 2),
        "refused": _refused(samples),
        "recovery_s": overload.recovery_s,
        "watched_s": round(overload.watched_s),
        "fault": overload.fault,
    }


def _killed(result: Result) -> Json | None:
    killed = result.killed
    if killed is None:
        return None
    back = killed.ready_again_s
    return {
        "requests": killed.samples.requests,
        "failed": int(killed.samples.failed.sum()),
        "errors": dict(killed.samples.errors),
        "repeatable": killed.repeatable,
        "repeatable_failed": killed.failed,
        "good_again_s": killed.good_again_s,
        "ready_again_s": None if back is None else round(back, 1),
    }


def killed_sentence(pipeline: Json) -> str:
    """What happened when a replica was killed; '' if none was."""
    killed = pipeline["replica_killed"]
    if not killed:
        return ""
    good, ready = killed["good_again_s"], killed["ready_again_s"]
    within = "not again within the time that was measured" if good is None else f"after {good} s"
    back = "it did not come back" if ready is None else f"it served again after {ready:g} s"
    errors = ", ".join(f"{count} {fault}" for fault, count in killed["errors"].items())
    return (
        f"A replica was killed at the target's rate: {killed['failed']} of {killed['requests']} "
        f"requests failed{f' ({errors})' * bool(errors)}, latency was within the limits {within}, "
        f"and {back}."
    )


def _cross_check(check: CrossCheck | None) -> Json | None:
    if check is None:
        return None
    return {
        "sentence": str(check),
        "peer": check.peer.name,
        "theirs": _client(check.theirs) if check.theirs else None,
        "this_generator": [_client(own) for own in check.ours],
        "ratio": check.ratio,
    }


def _client(client: Client) -> Json:
    figures = asdict(client)
    return {name: None if math.isnan(value) else value for name, value in figures.items()}


_NAMED = (1, 20, 50, 80, 95, 99, 99.9)  # of the curve's percentiles, those that fit an axis
_REFUSALS = ("HTTP 429", "HTTP 503", "gRPC StatusCode.RESOURCE_EXHAUSTED")


def _charts(pipeline: Json) -> list[tuple[str, str]]:
    """The page's charts: a heading, and the SVG."""
    widest = [mark for mark in _limits(pipeline) if mark.name.startswith("p")]
    windows = sorted(pipeline["windows"], key=lambda window: window["rate_per_s"])
    named = (("p50", "p50_ms", "a"), ("p99", "p99_ms", "b"))
    rates = [Line(name, _points(windows, "rate_per_s", key), style) for name, key, style in named]
    drawn = [
        (
            "Latency over rate",
            chart(
                "Latency over rate",
                "requests/s",
                "ms",
                rates,
                [*widest, Mark("target", pipeline["rate_per_s"], is_vertical=True)],
                is_log=True,
            ),
        )
    ]
    timeline = pipeline["timeline"]
    over_time = [
        Line("p50", _points(timeline, "second", "p50_ms"), "a"),
        Line("slowest", _points(timeline, "second", "worst_ms"), "b", is_joined=False),
    ]
    drawn.append(
        (
            "The target's run, by the second",
            chart("Latency over time", "s", "ms", over_time, widest, is_log=True),
        )
    )
    curve = [(float(index), ms) for index, (_, ms) in enumerate(pipeline["curve_ms"]) if ms]
    names = {
        float(index): f"{percentile:g}"
        for index, (percentile, _) in enumerate(pipeline["curve_ms"])
        if percentile in _NAMED
    }
    percentiles = chart(
        "Percentiles",
        "percentile",
        "ms",
        [Line("", curve, "a")],
        widest,
        is_log=True,
        names=names,
    )
    drawn.append(("Percentiles at the target", percentiles))
    if memory := pipeline["memory"]:
        points = list(zip(memory["seconds"], memory["mib"], strict=True))
        drawn.append(
            ("Memory of the servers", chart("Memory", "s", "MiB", [Line("", points, "c")]))
        )
    if scaling := pipeline["scaling"]:
        fitted = [(point[0], point[1]) for point in scaling["fitted_per_s"]]
        lines = [
            Line("fitted", fitted, "a"),
            Line("measured", scaling["measured_per_s"], "b", is_joined=False),
        ]
        mark = [Mark("target", pipeline["rate_per_s"])]
        drawn.append(("Replicas", chart("Scaling", "replicas", "requests/s", lines, mark)))
    return [(heading, svg) for heading, svg in drawn if svg]


def _points(rows: Sequence[Json], x: str, y: str) -> list[tuple[float, float]]:
    return [(row[x], row[y]) for row in rows if row[y] is not None]


def _limits(pipeline: Json) -> list[Mark]:
    return [
        Mark(f"{limit['name']} limit", limit["ms"])
        for limit in pipeline["limits"]
        if not limit["of"]
    ]


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 3)

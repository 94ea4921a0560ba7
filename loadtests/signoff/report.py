"""The report of a sign-off: as JSON with every figure, and as Markdown for people."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from loadtests.signoff.procedure import Result
from loadtests.signoff.samples import Samples
from modelspec.machine import cpu_name, git_commit, usable_cores

PERCENTILES = (0.5, 0.9, 0.95, 0.99, 0.999)
WORDS = {"pass": "SIGNED", "fail": "NOT SIGNED", "undecided": "UNDECIDED"}


def document(result: Result, url: str, root: Path) -> dict[str, Any]:
    """Everything that was measured, as plain JSON values; times in milliseconds."""
    slo = result.slo
    return {
        "verdict": result.outcome.value,
        "signed": result.outcome == "pass",
        "reason": result.reason,
        "first_thing_to_change": result.advice,
        "pipeline": slo.pipeline,
        "target": url,
        "rate_per_s": slo.tested_rate,
        "objectives": [
            {
                "name": line.name,
                "objective": line.objective,
                "measured": line.measured,
                "verdict": line.verdict.outcome.value,
                "requests": line.verdict.requests,
                "misses": line.verdict.misses,
                "confidence": line.verdict.confidence,
                "more_requests_needed": line.verdict.more,
            }
            for line in result.lines
        ],
        "became_steady": result.is_steady,
        "knee": _knee(result),
        "at_the_target": _samples(result.target) if result.target else None,
        "machine": {"cpu": cpu_name(), "cores": usable_cores()},
        "commit": git_commit(root, short=True),
    }


def markdown(report: dict[str, Any]) -> str:
    """The report as a page: the verdict first, then each objective and why."""
    rows = [
        f"| {line['name']} | {line['objective']} | {line['measured']} | "
        f"{line['verdict'].upper()} | {line['misses']} of {line['requests']} missed it"
        + (
            f"; {line['more_requests_needed']} more requests needed"
            * bool(line["more_requests_needed"])
        )
        + " |"
        for line in report["objectives"]
    ]
    knee = report["knee"]
    machine = report["machine"]
    return "\n".join(
        [
            f"# {report['pipeline']}: {WORDS[report['verdict']]}",
            "",
            f"{report['reason'].capitalize()}."
            + (
                f" First: {report['first_thing_to_change']}."
                * bool(report["first_thing_to_change"])
            ),
            "",
            f"| objective | limit | measured at {report['rate_per_s']:g}/s | verdict | requests |",
            "|---|---|---|---|---|",
            *rows,
            "",
            f"Highest rate that held every objective: {knee['held_per_s']:.4g}/s"
            + (f" (missed at {knee['missed_per_s']:.4g}/s)." if knee["missed_per_s"] else ".")
            if knee
            else "The highest rate was not searched.",
            "",
            f"Load: open loop, Poisson arrivals, latency from the intended time, against "
            f"{report['target']}, from {machine['cores']} cores of {machine['cpu']}"
            + (f", commit {report['commit']}." if report["commit"] else "."),
            "",
        ]
    )


def write(report: dict[str, Any], folder: Path) -> list[Path]:
    """Write ``report.json`` and ``report.md``; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        folder / "report.json": json.dumps(report, indent=2, ensure_ascii=False) + "\n",
        folder / "report.md": markdown(report),
    }
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    return list(files)


def _knee(result: Result) -> dict[str, Any] | None:
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


def _samples(samples: Samples) -> dict[str, Any]:
    lag_s = float(np.quantile(samples.lag_s, 0.99)) if samples.requests else 0.0
    latencies = {f"p{100 * share:g}_ms": _ms(samples.percentile_s(share)) for share in PERCENTILES}
    return {
        "requests": samples.requests,
        "failed": int(samples.failed.sum()),
        "errors": dict(samples.errors),
        "seconds": round(samples.duration_s, 1),
        **latencies,
        "generator": {"lag_p99_ms": _ms(lag_s), "cpu": round(samples.cpu, 3)},
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 3)

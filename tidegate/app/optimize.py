"""Which candidate of a model to serve on this machine, and with which serving parameters."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tidegate.app.optimize_options import OptimizeOptions
from tidegate.app.paths import Paths
from tidegate.app.progress import Progress
from tidegate.app.task_registry import KNOWN, NOTHING

if TYPE_CHECKING:
    from converters.optimize.findings import Findings

# The model's share of the budget when both parts run: the config is searched through a server,
# which is slower.
MODEL_SHARE = 0.4
CLOSING_S = 10.0  # to stop the trial server and write the results after the last trial
# As long as it takes to start a trial server and measure the default once.
CONFIG_SEARCH_AT_LEAST_S = 40.0


@dataclass
class OptimizeResult:
    """``documents`` has ``model`` and ``config``, in plain JSON types, of the parts that ran;
    ``is_picked`` is False if there were candidates and none may be picked."""

    documents: dict[str, Any] = field(default_factory=dict)
    is_picked: bool = True


def run(options: OptimizeOptions, paths: Paths, report: Progress, show: Progress) -> OptimizeResult:
    """Run the selected parts; ``show`` is called with the tables of each as it ends."""
    result, remaining_s = OptimizeResult(), options.budget_s
    if "model" in options.parts:
        share = MODEL_SHARE if "config" in options.parts else 1.0
        report(
            f"{options.name}: choosing the model, with {share * options.budget_s:.0f} s of the "
            "budget"
        )
        findings, spent_s = _choose_model(options, share * options.budget_s, paths, report)
        remaining_s -= spent_s
        result.documents["model"] = findings.to_dict() if findings else None
        if findings:
            result.is_picked = findings.chosen is not None
            show("\n".join(_lines(options, findings, paths)))
    if "config" not in options.parts:
        return result
    if "model" in options.parts and remaining_s < CONFIG_SEARCH_AT_LEAST_S:
        report(f"{options.name}: no config search: only {remaining_s:.0f} s of the budget are left")
        result.documents["config"] = None
        return result
    report(f"{options.name}: searching the config, with {remaining_s:.0f} s of the budget")
    searched = _search_config(options, max(1.0, remaining_s - CLOSING_S), paths, report)
    result.documents["config"] = searched.as_json()
    show("\n".join(searched.lines()))
    return result


def _choose_model(
    options: OptimizeOptions, budget_s: float, paths: Paths, report: Progress
) -> tuple["Findings | None", float]:
    """The findings, saved and plotted, and the seconds they took; None if there is no choice."""
    from converters.optimize.budget import Budget
    from converters.optimize.chart import draw
    from tidegate.app.optimize_candidates import find

    budget = Budget(budget_s, hard_s=max(1.0, options.budget_s - CLOSING_S))
    findings = find(options, budget, paths, report)
    if findings is None:
        report(f"{options.name}: tabular models exist in fp32 only: nothing to choose")
        return None, budget.spent
    folder = paths.state / "optimize" / options.name

    def write(found: "Findings") -> None:
        saved = [found.save(folder), *draw(found, folder)]
        report("written: " + ", ".join(paths.shown(path) for path in saved))

    write(findings)
    if options.publish:
        published = _publish_fastest(options, findings, paths, report)
        if published is not findings:
            write(published)
        findings = published
    return findings, budget.spent


def _search_config(
    options: OptimizeOptions, budget_s: float, paths: Paths, report: Progress
) -> Any:
    from tidegate.app.config_search import ConfigSearchOptions, tune

    search_options = ConfigSearchOptions(
        name=options.name,
        budget_s=budget_s,
        p99_ms=options.p99_ms,
        connections=options.connections,
        samples=options.samples,
        fresh=options.fresh,
        commit=options.commit,
    )
    return tune(search_options, paths, report)


def _lines(options: OptimizeOptions, findings: "Findings", paths: Paths) -> Iterator[str]:
    from converters.optimize.table import lines
    from tidegate.app.optimize_candidates import original_options

    yield from lines(findings)
    chosen = findings.chosen
    if chosen and not options.publish:
        extra = original_options(options, paths)
        yield f"to serve it: {convert_line(options, chosen.candidate.precision, extra)}"


def convert_line(
    options: OptimizeOptions, precision: str, source_options: Mapping[str, str] = NOTHING
) -> str:
    """The command that publishes this precision of an original with these ``source_options``."""
    known = options.name in KNOWN
    words = ["tidegate convert", options.name if known else str(options.source)]
    if not known:
        words += ["--name", options.name]
    if options.task and not known:
        words += ["--task", options.task]
    if options.samples:
        words += ["--samples", str(options.samples)]
    for name, value in source_options.items():
        words += [f"--{name.replace('_', '-')}", value]
    return " ".join([*words, "--precision", precision, "--force"])


def _publish_fastest(
    options: OptimizeOptions, findings: "Findings", paths: Paths, report: Progress
) -> "Findings":
    """Publish the pick, or the next one where its conversion is refused: that is proved on the
    samples of a conversion, among them the longest texts. Returns the findings with what was
    refused."""
    from converters.errors import ProofFailed

    while findings.chosen:
        precision = findings.chosen.candidate.precision
        try:
            _publish(options, precision, paths, report)
            break
        except ProofFailed as refusal:
            lines = str(refusal).splitlines()
            reason = f"its conversion is refused: {lines[min(1, len(lines) - 1)].strip()}"
            report(f"{options.name}: {precision}: {reason}")
            findings = findings.without(precision, reason)
    return findings


def _publish(options: OptimizeOptions, precision: str, paths: Paths, report: Progress) -> None:
    """Publish as ``tidegate convert NAME --precision X`` would."""
    from tidegate.app.convert import ConvertOptions
    from tidegate.app.convert import run as convert
    from tidegate.app.optimize_candidates import original_options

    known = options.name in KNOWN
    convert_options = ConvertOptions(
        source_options=original_options(options, paths),
        source=options.name if known else str(options.source),
        task=None if known else options.task,
        name=None if known else options.name,
        samples=options.samples,
        precisions=(precision,),
        force=True,
    )
    for line in convert(convert_options, paths, report).lines(paths):
        report(line)

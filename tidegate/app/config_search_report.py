"""The report of a config search, as lines of text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from serving.tuning.setting import Setting

if TYPE_CHECKING:
    from serving.tuning.closed_loop import Figures
    from serving.tuning.trial import Trial
    from serving.tuning.tune import Result

# A load generator that takes a larger share of the machine's cores distorts the measurement.
GENERATOR_SHARE = 0.25


@dataclass(frozen=True)
class ConfigSearchReport:
    """``written`` are files, relative to the repository; ``committed`` are models."""

    result: "Result"
    written: Sequence[str]
    committed: Sequence[str]

    def as_json(self) -> dict[str, Any]:
        """The measurements and their outcome, in plain JSON types."""
        from serving.tuning.outcome import measurement

        result, winner = self.result, self.result.winner
        return {
            "name": result.name,
            "context": dict(result.context),
            "seconds": result.seconds,
            "is_complete": result.is_complete,
            "notes": list(result.notes),
            "trials": [trial.as_dict() for trial in result.trials],
            "moves": [
                {
                    "serving_parameter": move.serving_parameter,
                    "from": move.before.as_dict(),
                    "to": move.after.as_dict(),
                    "ratio_before": move.ratio_before,
                    "ratio_after": move.ratio_after,
                }
                for move in result.search.moves
            ],
            "finals": [trial.as_dict() for trial in result.finals],
            "control": result.control.as_dict() if result.control else None,
            "measurement": measurement(result, winner) if winner else None,
            "written": list(self.written),
            "committed": list(self.committed),
        }

    def lines(self) -> list[str]:
        """The report as lines of text."""
        return lines(self)


def lines(report: "ConfigSearchReport") -> list[str]:
    return [*_outcome(report.result), *_written(report)]


def _outcome(result: "Result") -> Iterator[str]:
    summary = f"{len(result.trials)} settings tried" + (
        "" if result.is_complete else "; the budget ended the search: run it again to resume"
    )
    yield f"{result.name}: {summary} ({result.seconds:.0f} s)"
    for move in result.search.moves:
        changes = move.after.changes(move.before)
        yield (
            f"  {move.serving_parameter}: {changes}: {move.ratio_before:.2f}x -> "
            f"{move.ratio_after:.2f}x"
        )
    if result.finals:
        yield "  finalists, each measured again against the default:"
    for trial in result.finals:
        verdict = "" if trial.score(result.p99_ms) else ", over the bound"
        default = Setting.from_dict(result.context["default"])
        yield (
            f"    {trial.setting.changes(default)}: {trial.ratio:.2f}x "
            f"(+-{100 * trial.error:.0f} %){verdict}"
        )
    failed = [trial for trial in result.trials if trial.tuned is None]
    for trial in failed:
        yield f"  {trial.status}: {trial.setting.key}: {trial.reason}"
    if not (result.finals or result.is_complete):
        yield "  the budget ended before there was a result: nothing was changed"
        return
    if result.winner is None:
        yield "  no setting is faster than the default within the bound: the default stays"
        return
    yield from _table(result, result.winner)


def _table(result: "Result", winner: "Trial") -> Iterator[str]:
    connections, machine = result.context["connections"], result.context["machine"]
    bound = winner.bound_ms(result.p99_ms)
    source = "--p99-ms" if result.p99_ms else "the default's own p99 plus 10 %"
    yield f"  {'':10}{'requests/s':>11}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}"
    for name, figures in (("default", winner.default), ("tuned", winner.tuned)):
        if figures:
            yield _row(name, figures)
    yield (
        f"  {winner.ratio:.2f}x the default at {connections} connections, measured in alternation; "
        f"bound: p99 <= {bound:.0f} ms ({source})"
    )
    if result.control and result.control.tuned:
        yield f"  the default against a copy of itself, the same way: {result.control.ratio:.2f}x"
    cores = winner.tuned.generator_cores if winner.tuned else 0.0
    yield f"  the load generator took {cores:.2f} of {machine['cores']} cores ({machine['cpu']})"
    if cores > GENERATOR_SHARE * machine["cores"]:
        yield "  that is a lot: without it the server would be faster than these figures"
    if winner.setting.max_batch != result.context["default"].get("max_batch"):
        yield (
            f"  a request straight to Triton may now have at most {winner.setting.max_batch} rows, "
            f"not {result.context['default']['max_batch']} (the gateway splits larger ones)"
        )
    yield "  the gain depends on the inputs: pass your own with --samples"


def _row(name: str, figures: "Figures") -> str:
    return (
        f"  {name:10}{figures.rps:>11.1f}{figures.p50_ms:>9.1f}{figures.p95_ms:>9.1f}"
        f"{figures.p99_ms:>9.1f}"
    )


def _written(report: "ConfigSearchReport") -> Iterator[str]:
    if report.written:
        yield f"  written: {', '.join(report.written)}; the next tidegate up serves it"
    if report.committed:
        yield f"  committed to config.pbtxt of {', '.join(report.committed)}"

"""One setting, measured beside the default in alternating passes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from modelspec.measuring import alternate, mean_ratio
from serving.errors import ServingError
from serving.tuning import closed_loop
from serving.tuning.closed_loop import Figures, Load, Pass
from serving.tuning.search import Score
from serving.tuning.setting import Setting
from serving.tuning.trial_server import TrialServer
from serving.tuning.workload import Outputs, Workload, difference

# If the user gives no bound: the default's own p99, and a little for noise.
P99_SLACK = 1.1
MEASURED, REFUSED, FAILED = "measured", "refused", "failed"


@dataclass(frozen=True)
class Trial:
    """The result of measuring a setting. ``ratio`` is its throughput divided by the default's, both
    measured in alternation, and ``error`` the standard error of its logarithm over the pairs of
    passes; ``reason`` says why a setting that was refused (wrong outputs) or failed has no figures.
    """

    setting: Setting
    status: str
    reason: str = ""
    ratio: float = 0.0
    error: float = 0.0
    default: Figures | None = None
    tuned: Figures | None = None

    def score(self, p99_ms: float | None) -> Score | None:
        """The ratio if the setting may be used under this bound, else None."""
        if self.tuned is None or self.tuned.p99_ms > self.bound_ms(p99_ms):
            return None
        return Score(self.ratio, self.error)

    def bound_ms(self, p99_ms: float | None) -> float:
        return p99_ms or P99_SLACK * (self.default.p99_ms if self.default else 0.0)

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "setting": self.setting.as_dict()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Trial":
        figures = {
            which: Figures(**fields[which]) if fields[which] else None
            for which in ("default", "tuned")
        }
        return cls(**{**fields, **figures, "setting": Setting.from_dict(fields["setting"])})


@dataclass(frozen=True)
class Bench:
    """What the trials of one search share. ``pass_s`` is the length of one pass in seconds."""

    trial_server: TrialServer
    workload: Workload
    expected: list[Outputs]
    connections: int
    pass_s: float

    def run(self, setting: Setting, pairs: int) -> Trial:
        """Load the setting and measure it against the default in ``pairs`` pairs of passes. A
        setting that Triton refuses is a failed trial, not an error."""
        try:
            self.trial_server.load_trial(setting)
            model = self.trial_server.trial_name
            outputs = self.workload.outputs(self.trial_server.server.control, model)
        except ServingError as error:
            if not self.trial_server.server.is_alive():
                raise
            return Trial(setting, FAILED, str(error))
        mismatch = difference(outputs, self.expected, self.workload.tolerance)
        if mismatch:
            return Trial(setting, REFUSED, mismatch)
        return self._measured(setting, pairs)

    def _measured(self, setting: Setting, pairs: int) -> Trial:
        loads = {
            name: Load(self.workload.requests_to(name), self.connections, self.pass_s)
            for name in (self.trial_server.name, self.trial_server.trial_name)
        }
        for load in loads.values():  # warm-up: connections, arenas, every shape
            closed_loop.run(self.trial_server.address, load)
        passes = alternate(
            {
                name: partial(closed_loop.run, self.trial_server.address, load)
                for name, load in loads.items()
            },
            pairs,
        )
        return _evaluated(
            setting, passes[self.trial_server.name], passes[self.trial_server.trial_name]
        )


def _evaluated(setting: Setting, default: list[Pass], tuned: list[Pass]) -> Trial:
    failed = _first_failed(tuned)
    if failed:
        return Trial(setting, FAILED, f"requests failed: {failed.first_error or 'none answered'}")
    failed = _first_failed(default)
    if failed:
        raise ServingError(
            "the unchanged pipeline fails under this load, so there is nothing to compare with: "
            f"{failed.first_error or 'no answer within a pass'}; try fewer --connections"
        )
    ratio, error = mean_ratio([done.rps for done in tuned], [done.rps for done in default])
    return Trial(
        setting,
        MEASURED,
        ratio=round(ratio, 4),
        error=round(error, 4),
        default=closed_loop.merged(default),
        tuned=closed_loop.merged(tuned),
    )


def _first_failed(passes: list[Pass]) -> Pass | None:
    return next((done for done in passes if done.errors or not done.latencies_ms), None)

"""One setting, measured beside the default in alternating passes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

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

    def as_dict(self) -> dict[str, Any]:
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
        passes: dict[str, list[Pass]] = {name: [] for name in loads}
        for number in range(pairs):
            # Which of the two comes first alternates, too.
            for name in list(loads)[:: -1 if number % 2 else 1]:
                passes[name].append(closed_loop.run(self.trial_server.address, loads[name]))
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
    pairs = zip(tuned, default, strict=True)
    logs = np.log([changed.rps / unchanged.rps for changed, unchanged in pairs])
    return Trial(
        setting,
        MEASURED,
        ratio=round(float(np.exp(np.mean(logs))), 4),
        error=round(float(np.std(logs, ddof=1) / np.sqrt(len(logs))), 4),
        default=closed_loop.merged(default),
        tuned=closed_loop.merged(tuned),
    )


def _first_failed(passes: list[Pass]) -> Pass | None:
    return next((done for done in passes if done.errors or not done.latencies_ms), None)

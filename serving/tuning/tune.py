"""Search the serving parameters of one pipeline within a time budget, and measure the winner
again."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.errors import ServingError
from serving.repository.configs import is_ensemble
from serving.repository.model_repository import ModelRepository
from serving.tuning import workload
from serving.tuning.closed_loop import LEAD_IN
from serving.tuning.journal import TrialLog, context
from serving.tuning.search import Score, SearchState, concluded, finalists, search_state, winner
from serving.tuning.setting import Setting, roles, setting_of
from serving.tuning.space import Space
from serving.tuning.trial import Bench, Trial
from serving.tuning.trial_server import TrialServer

Progress = Callable[[str], None]
# Many short alternating passes, not a few long ones: the machine's other work comes in bursts.
SHORTEST_PASS_S, LONGEST_PASS_S = 0.5, 1.2
PASSES_IN_BUDGET = 500
TRIAL_PAIRS, FINAL_PAIRS = 5, (5, 20)
FINALISTS = 3
# The share of the budget that is reserved for measuring the best settings again.
FINAL_SHARE = 0.3


@dataclass(frozen=True)
class Job:
    """What to tune. ``bodies`` are requests in the endpoint schema's form; trials are recorded in
    ``folder``; ``p99_ms`` is the bound, None for the default's own p99 and a little."""

    repository: ModelRepository
    work_dir: Path
    name: str
    bodies: Sequence[Mapping[str, Any]]
    budget_s: float
    p99_ms: float | None = None
    connections: int = 32
    fresh: bool = False

    @property
    def folder(self) -> Path:
        return self.work_dir / "optimize" / self.name

    @property
    def pass_s(self) -> float:
        return min(LONGEST_PASS_S, max(SHORTEST_PASS_S, self.budget_s / PASSES_IN_BUDGET))


@dataclass(frozen=True)
class Result:
    """``winner`` is the final measurement of the best setting; None if none beats the default
    within the bound. ``control`` is the default measured against a copy of itself: how far its
    ratio is from 1 is noise; None if there was no final. ``trials`` are all those of this context,
    earlier runs included."""

    name: str
    context: Mapping[str, Any]
    trials: Sequence[Trial]
    search: SearchState
    finals: Sequence[Trial]
    control: Trial | None
    winner: Trial | None
    p99_ms: float | None
    is_complete: bool
    seconds: float
    notes: Sequence[str] = field(default_factory=list)


def tune(job: Job, report: Progress) -> Result:
    """Measure until the search or the budget ends; ServingError if there is nothing to tune or the
    unchanged pipeline cannot be served. Ctrl-C keeps every finished trial."""
    started = time.monotonic()
    require_pipeline(job.repository, job.name)
    report(f"{job.name}: starting a scratch Triton")
    try:
        with TrialServer(job.repository, job.name, job.work_dir) as trial_server:
            return _Search(job, trial_server, report, started).run()
    except KeyboardInterrupt:
        report(f"{job.name}: stopped; finished trials are kept: run it again to continue")
        raise


def require_pipeline(repository: ModelRepository, name: str) -> None:
    if not repository.is_published(name):
        raise ServingError(f"there is no model {name!r} in {repository}: convert it first")
    if not is_ensemble(repository.config(name)):
        raise ServingError(
            f"{name} is a single model, not a pipeline: it has no serving parameters to search"
        )


class _Search:
    """The loop: choose a setting, measure it, record the trial."""

    def __init__(
        self, job: Job, trial_server: TrialServer, report: Progress, started: float
    ) -> None:
        self._job, self._report, self._started = job, report, started
        self._notes: list[str] = []
        self._longest_s = 0.0  # of a trial
        control = trial_server.server.control
        samples = workload.from_samples(trial_server.configs[job.name], job.bodies)
        samples, refusal = workload.accepted(control, job.name, samples)
        if refusal:
            refused = len(job.bodies) + 1 - len(samples.requests)
            self._note(f"{refused} samples are left out: {job.name} refuses them ({refusal})")
        outputs = samples.outputs(control, job.name)
        self._bench = Bench(trial_server, samples, outputs, job.connections, job.pass_s)
        load = (job.connections, job.pass_s)
        requests = samples.requests_to(job.name)
        self._context = context(trial_server, job.repository, requests, load)
        self._log = TrialLog(job.folder, self._context, job.fresh)
        default = setting_of(trial_server.configs)
        self._space = Space(default, self._context["machine"]["cores"], self._lengths(trial_server))

    def run(self) -> Result:
        known = self._log.trials()
        if known:
            self._report(f"{self._job.name}: {len(known)} trials are known from earlier runs")
        is_complete = self._explore()
        search = concluded(self._space, self._scores())
        finals = self._finals(search)
        best = winner([(trial.setting, trial.score(self._job.p99_ms)) for trial in finals])
        return Result(
            name=self._job.name,
            context=self._context,
            trials=self._log.trials(),
            search=search,
            finals=finals,
            control=self._control() if finals else None,
            winner=next((trial for trial in finals if trial.setting == best), None),
            p99_ms=self._job.p99_ms,
            is_complete=is_complete,
            seconds=round(time.monotonic() - self._started, 1),
            notes=self._notes,
        )

    def _lengths(self, trial_server: TrialServer) -> list[int]:
        pre = roles(trial_server.configs).pre
        if not pre or setting_of(trial_server.configs).buckets is None:
            return []
        return workload.lengths(trial_server.server.control, pre, self._bench.workload)

    def _explore(self) -> bool:
        """Run trials until the search (True) or its share of the budget is over."""
        deadline = self._started + self._job.budget_s * (1 - FINAL_SHARE)
        while True:
            current = search_state(self._space, self._scores())
            started = time.monotonic()
            if current.next is None or started + self._longest_s > deadline:
                return current.next is None
            trial = self._bench.run(current.next, TRIAL_PAIRS)
            self._log.add(trial)
            self._longest_s = max(self._longest_s, time.monotonic() - started)
            self._report(self._line(trial, current))

    def _finals(self, search: SearchState) -> list[Trial]:
        """Measure the settings on the way to the best again, against the default, in more pairs of
        passes."""
        settings = finalists(search, FINALISTS)
        remaining_s = self._remaining_s() - self._longest_s  # the control's time
        # Loading takes as long as it took in a trial; the rest is passes.
        passes_s = remaining_s / max(1, len(settings)) - self._longest_s
        affordable = int(passes_s / (2 * (1 + LEAD_IN) * self._job.pass_s))
        pairs = min(FINAL_PAIRS[1], max(FINAL_PAIRS[0], affordable))
        trials = []
        for number, setting in enumerate(settings, 1):
            trial = self._bench.run(setting, pairs)
            trials.append(trial)
            changes = setting.changes(self._space.default)
            self._report(f"final {number} of {len(settings)}: {changes}: {summary(trial)}")
        return trials

    def _control(self) -> Trial | None:
        """Measure the default against a copy of itself, if there is time for it."""
        if self._remaining_s() < self._longest_s:
            return None
        return self._bench.run(self._space.default, TRIAL_PAIRS)

    def _remaining_s(self) -> float:
        return self._job.budget_s - (time.monotonic() - self._started)

    def _scores(self) -> dict[Setting, Score | None]:
        return {trial.setting: trial.score(self._job.p99_ms) for trial in self._log.trials()}

    def _line(self, trial: Trial, search: SearchState) -> str:
        remaining_s = max(0.0, self._remaining_s())
        is_slow = trial.tuned and trial.score(self._job.p99_ms) is None
        over = f" (over {trial.bound_ms(self._job.p99_ms):.0f} ms)" if is_slow else ""
        return (
            f"{search.serving_parameter}: {trial.setting.changes(search.best)}: "
            f"{summary(trial)}{over}; best {search.ratio:.2f}x; {remaining_s:.0f} s left of "
            f"{self._job.budget_s:.0f}"
        )

    def _note(self, text: str) -> None:
        self._notes.append(text)
        self._report(text)


def summary(trial: Trial) -> str:
    """A trial in a few words."""
    if trial.tuned is None or trial.default is None:
        return f"{trial.status}: {trial.reason}"
    tuned, default = trial.tuned, trial.default
    return (
        f"{trial.ratio:.2f}x ({tuned.rps:.0f}/s against {default.rps:.0f}, "
        f"p99 {tuned.p99_ms:.0f} ms against {default.p99_ms:.0f})"
    )

"""Search the serving parameters of one pipeline within a time budget, and measure the winner once
more."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.errors import ServingError
from serving.pins import is_ensemble
from serving.repository import is_published, read_config
from serving.tuning import workload as asking
from serving.tuning.closed_loop import LEAD_IN
from serving.tuning.journal import TrialLog, context
from serving.tuning.search import Score, Standing, concluded, finalists, standing, winner
from serving.tuning.setting import Setting, roles, setting_of
from serving.tuning.space import Space
from serving.tuning.trial import Bench, Trial
from serving.tuning.trial_server import TrialServer

Say = Callable[[str], None]
# Many short passes in turns, not a few long ones: what else the machine does comes in bursts.
SHORTEST_PASS_S, LONGEST_PASS_S = 0.5, 1.2
PASSES_IN_BUDGET = 500
TRIAL_PAIRS, FINAL_PAIRS = 5, (5, 20)
FINALISTS = 3
# The part of the budget that is kept for measuring the best again.
FINAL_SHARE = 0.3


@dataclass(frozen=True)
class Job:
    """What to tune. ``bodies`` are endpoint schema requests; ``folder`` is where trials are kept;
    ``p99_ms`` None: the default's own p99, and a little."""

    repository: Path
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
    """``winner`` is the final measurement of the best setting; None when none sign of life the
    default
    within the bound. ``control`` is the default measured against a copy of itself: how far its
    ratio is from 1 is noise; None where there was no final. ``trials`` are all of this context,
    older runs' too."""

    name: str
    context: Mapping[str, Any]
    trials: Sequence[Trial]
    search: Standing
    finals: Sequence[Trial]
    control: Trial | None
    winner: Trial | None
    p99_ms: float | None
    is_complete: bool
    seconds: float
    notes: Sequence[str] = field(default_factory=list)


def tune(job: Job, say: Say) -> Result:
    """Measure until the search is over or the budget is; ServingError when there is nothing to
    tune or the pipeline cannot be served as it is. Ctrl-C keeps every trial that was finished."""
    started = time.monotonic()
    require_pipeline(job.repository, job.name)
    say(f"{job.name}: starting a scratch Triton")
    try:
        with TrialServer(job.repository, job.name, job.work_dir) as trial_server:
            return _Search(job, trial_server, say, started).run()
    except KeyboardInterrupt:
        say(f"{job.name}: stopped; the trials that were finished are kept: run it again to go on")
        raise


def require_pipeline(repository: Path, name: str) -> None:
    if not is_published(repository, name):
        raise ServingError(f"there is no model {name!r} in {repository}: convert it first")
    if not is_ensemble(read_config(repository, name)):
        raise ServingError(
            f"{name} is a single model and no pipeline: it has no serving parameters to search"
        )


class _Search:
    """The loop: what to try, the trial, the record of it."""

    def __init__(self, job: Job, trial_server: TrialServer, say: Say, started: float) -> None:
        self._job, self._say, self._started = job, say, started
        self._notes: list[str] = []
        self._longest_s = 0.0  # of a trial
        asked = asking.questions(trial_server.configs[job.name], job.bodies)
        asked, refusal = asking.accepted(trial_server.server.control, job.name, asked)
        if refusal:
            left = len(job.bodies) + 1 - len(asked.requests)
            self._note(f"{left} samples are left out: {job.name} refuses them ({refusal})")
        answers = asked.answers(trial_server.server.control, job.name)
        self._bench = Bench(trial_server, asked, answers, job.connections, job.pass_s)
        load = (job.connections, job.pass_s)
        self._context = context(trial_server, job.repository, asked.to(job.name), load)
        self._log = TrialLog(job.folder, self._context, job.fresh)
        default = setting_of(trial_server.configs)
        self._space = Space(default, self._context["machine"]["cores"], self._lengths(trial_server))

    def run(self) -> Result:
        known = self._log.trials()
        if known:
            self._say(f"{self._job.name}: {len(known)} trials are known from before")
        is_complete = self._explore()
        reached = concluded(self._space, self._scores())
        finals = self._finals(reached)
        best = winner([(each.setting, each.score(self._job.p99_ms)) for each in finals])
        return Result(
            name=self._job.name,
            context=self._context,
            trials=self._log.trials(),
            search=reached,
            finals=finals,
            control=self._control() if finals else None,
            winner=next((each for each in finals if each.setting == best), None),
            p99_ms=self._job.p99_ms,
            is_complete=is_complete,
            seconds=round(time.monotonic() - self._started, 1),
            notes=self._notes,
        )

    def _lengths(self, trial_server: TrialServer) -> list[int]:
        pre = roles(trial_server.configs).pre
        if not pre or setting_of(trial_server.configs).buckets is None:
            return []
        return asking.lengths(trial_server.server.control, pre, self._bench.questions)

    def _explore(self) -> bool:
        """Trials until the search (True) or its part of the budget is over."""
        until = self._started + self._job.budget_s * (1 - FINAL_SHARE)
        while True:
            now = standing(self._space, self._scores())
            begun = time.monotonic()
            if now.next is None or begun + self._longest_s > until:
                return now.next is None
            trial = self._bench.run(now.next, TRIAL_PAIRS)
            self._log.add(trial)
            self._longest_s = max(self._longest_s, time.monotonic() - begun)
            self._say(self._line(trial, now))

    def _finals(self, reached: Standing) -> list[Trial]:
        """The way to the best setting again, against the default in more pairs of passes."""
        chosen = finalists(reached, FINALISTS)
        left_s = self._left_s() - self._longest_s  # the control's
        # Loading takes as long as it took in a trial; the rest is passes.
        for_passes_s = left_s / max(1, len(chosen)) - self._longest_s
        fit = int(for_passes_s / (2 * (1 + LEAD_IN) * self._job.pass_s))
        pairs = min(FINAL_PAIRS[1], max(FINAL_PAIRS[0], fit))
        found = []
        for place, setting in enumerate(chosen, 1):
            trial = self._bench.run(setting, pairs)
            found.append(trial)
            what = setting.changes(self._space.default)
            self._say(f"final {place} of {len(chosen)}: {what}: {said(trial)}")
        return found

    def _control(self) -> Trial | None:
        """The default against a copy of itself, if there is time for it."""
        if self._left_s() < self._longest_s:
            return None
        return self._bench.run(self._space.default, TRIAL_PAIRS)

    def _left_s(self) -> float:
        return self._job.budget_s - (time.monotonic() - self._started)

    def _scores(self) -> dict[Setting, Score | None]:
        return {each.setting: each.score(self._job.p99_ms) for each in self._log.trials()}

    def _line(self, trial: Trial, now: Standing) -> str:
        left = max(0.0, self._left_s())
        late = trial.tuned and trial.score(self._job.p99_ms) is None
        over = f" (over {trial.bound_ms(self._job.p99_ms):.0f} ms)" if late else ""
        return (
            f"{now.serving_parameter}: {trial.setting.changes(now.best)}: {said(trial)}{over}; "
            f"best {now.ratio:.2f}x; {left:.0f} s left of {self._job.budget_s:.0f}"
        )

    def _note(self, text: str) -> None:
        self._notes.append(text)
        self._say(text)


def said(trial: Trial) -> str:
    """A trial in a few words."""
    if trial.tuned is None or trial.default is None:
        return f"{trial.status}: {trial.reason}"
    tuned, default = trial.tuned, trial.default
    return (
        f"{trial.ratio:.2f}x ({tuned.rps:.0f}/s against {default.rps:.0f}, "
        f"p99 {tuned.p99_ms:.0f} ms against {default.p99_ms:.0f})"
    )

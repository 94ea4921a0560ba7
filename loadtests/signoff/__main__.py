"""The load generator of ``tidegate signoff``: gevent patches its process."""

import os
import signal
import sys
import traceback
from typing import Any

CANNOT_START, UNDECIDED = 3, 2


def _stop_early(*_: object) -> None:
    """Ctrl-C while modules are imported, which takes a second or two."""
    os.write(2, b"tidegate: stopped before any load\n")
    os._exit(CANNOT_START)


class _Load:
    """Whether any was sent."""

    has_begun = False


def _end_unforeseen(*error: Any) -> None:
    """A bug is no verdict: without this Python ends with 1, which says that it was not signed."""
    traceback.print_exception(*error)
    sys.stdout.flush()
    os._exit(UNDECIDED if _Load.has_begun else CANNOT_START)


if __name__ == "__main__":
    sys.excepthook = _end_unforeseen
    signal.signal(signal.SIGINT, _stop_early)
    signal.signal(signal.SIGTERM, _stop_early)

from gevent import monkey  # noqa: E402

monkey.patch_all()

import contextlib  # noqa: E402
import json  # noqa: E402
import math  # noqa: E402
import resource  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Iterator, Mapping, Sequence  # noqa: E402
from dataclasses import replace  # noqa: E402
from datetime import UTC, datetime  # noqa: E402
from functools import partial  # noqa: E402
from pathlib import Path  # noqa: E402
from urllib.parse import urlsplit  # noqa: E402

import click  # noqa: E402
import gevent  # noqa: E402

from loadtests.own_stack.errors import NotStarted  # noqa: E402
from loadtests.own_stack.stack import running  # noqa: E402
from loadtests.preflight import CannotStart, find_key  # noqa: E402
from loadtests.signoff.arrivals import POISSON, Arrivals, Times, burst_of  # noqa: E402
from loadtests.signoff.confidence import Outcome  # noqa: E402
from loadtests.signoff.cross_check import (  # noqa: E402
    AIPERF,
    CONNECTIONS,
    PERF_ANALYZER,
    ROWS,
    CrossCheck,
    NotCompared,
    Peer,
    ServersTime,
    aiperf,
    perf_analyzer,
)
from loadtests.signoff.cross_check import Client as Compared  # noqa: E402
from loadtests.signoff.generators import (  # noqa: E402
    REPLAY,
    GeneratorLost,
    Setup,
    generators,
)
from loadtests.signoff.memory import Memory, server_process  # noqa: E402
from loadtests.signoff.open_loop import run, run_closed  # noqa: E402
from loadtests.signoff.options import Options  # noqa: E402
from loadtests.signoff.preflight import Pipeline, require_writable  # noqa: E402
from loadtests.signoff.procedure import (  # noqa: E402
    PROFILES,
    NotMeasured,
    Result,
    highest_rate,
    judge_kill,
    needed_s,
    not_killed,
    sign_off,
    sign_off_replay,
    warm_up,
)
from loadtests.signoff.replica import Replica, replica_of  # noqa: E402
from loadtests.signoff.report import (  # noqa: E402
    WORDS,
    Circumstances,
    document,
    markdown,
    overall,
    write,
)
from loadtests.signoff.requests import TIMEOUT_S, Target  # noqa: E402
from loadtests.signoff.samples import Samples, milliseconds  # noqa: E402
from loadtests.signoff.scaling import Scaling, fit  # noqa: E402
from loadtests.signoff.sending import Source  # noqa: E402
from loadtests.signoff.slo import (  # noqa: E402
    Slo,
    SloError,
    read_objectives,
    require_burst_fits,
)
from loadtests.signoff.steps import Steps, read_statistics  # noqa: E402
from loadtests.signoff.tenants import Tenant, read_keys  # noqa: E402
from loadtests.signoff.trace import Trace, read_trace  # noqa: E402
from loadtests.texts import CorpusMissing  # noqa: E402

# Each request under way has a connection, and a process may have 1,024 files by default.
_, MOST_FILES = resource.getrlimit(resource.RLIMIT_NOFILE)
ROOT = Path(__file__).parent.parent.parent
EXIT_CODES = {Outcome.PASS: 0, Outcome.FAIL: 1, Outcome.UNDECIDED: UNDECIDED}
HIGHEST = 2_000.0  # requests per second: more than one core of this generator can send
MEMORY_EVERY_S = 1.0
BEFORE_KILL_S = 5.0
# Sends when it is due, at a rate for so many seconds, and says how far it is: open_loop.run.
Runner = Callable[[Times, float, float, Callable[[float], None]], Samples]


def main(options: Options) -> int:
    """The exit code: 0 signed, 1 not, 2 undecided, 3 it could not start. Where this raises, it is
    2 or 3."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    resource.setrlimit(resource.RLIMIT_NOFILE, (MOST_FILES, MOST_FILES))
    began, clock = datetime.now(UTC), time.monotonic()
    try:
        trace = None
        if options.trace:
            trace = read_trace(options.trace, options.speed, options.pipelines)
        objectives = read_objectives(options.objectives)
        slos = _chosen(options, objectives.slos, trace)
        require_writable(options.out)
        results = [Result(slo, trace=str(trace or "")) for slo in slos.values()]
        timeout_s = max(TIMEOUT_S, *(1.2 * slo.widest_s for slo in slos.values()))
        with _target(options, list(slos), timeout_s) as target:
            # Everything that can be refused is refused before the load.
            served = {name: target.pipeline(name) for name in slos}
            tools = (
                {name: _peer_of(pipeline).find(ROOT) for name, pipeline in served.items()}
                if options.cross_check
                else {}
            )
            first = next(iter(slos))
            replica = replica_of(options.allow_kill, first) if options.allow_kill else None
            with _runners(options, target, served, slos, trace) as runners:
                is_whole = _until_stopped(
                    partial(_sign_off, options, results, runners, target, trace)
                )
                for result in results:
                    pipeline = served[result.slo.pipeline]
                    if tools and is_whole:
                        tool = tools[pipeline.name]
                        check = partial(_cross_check, result, target, pipeline, tool)
                        is_whole = _until_stopped(partial(check, options.profile))
                if replica and is_whole:
                    runner = runners[results[0].slo.pipeline]
                    is_whole = _until_stopped(partial(_lose, options, results[0], runner, replica))
    except (SloError, CannotStart, CorpusMissing, NotStarted, GeneratorLost) as error:
        click.secho(f"tidegate: {error}", fg="red", err=True)
        return UNDECIDED if _Load.has_begun else CANNOT_START
    except KeyboardInterrupt:
        when = "without a report" if _Load.has_begun else "before any load"
        click.echo(f"tidegate: stopped {when}", err=True)
        return UNDECIDED if _Load.has_begun else CANNOT_START
    for result in results:
        if is_whole and options.scale_to > 1:
            is_whole = _until_stopped(partial(_scale, options, result))
        if is_whole and options.kill_replica:
            is_whole = _until_stopped(partial(_lose_one_of_two, options, result))
    for result in results:
        if not is_whole and result.outcome is Outcome.PASS:
            result.outcome, result.reason = Outcome.UNDECIDED, "it was stopped before its end"
    circumstances = Circumstances(
        target.url if options.target else "a stack of its own",
        options.profile,
        began.isoformat(timespec="seconds"),
        time.monotonic() - clock,
        {name: pipeline.versions for name, pipeline in served.items()},
        objectives.text,
    )
    report = document(results, circumstances, ROOT)
    click.echo(json.dumps(report, indent=2) if options.as_json else markdown(report))
    try:
        where = ", ".join(map(str, write(report, options.out)))
    except OSError as error:  # the disk is full, or the folder went away: above is what there is
        where = f"the report could not be written to {options.out}: {error.strerror}"
    click.echo(f"{WORDS[report['verdict']]}: {where}", err=True)
    if not is_whole:
        return EXIT_CODES[Outcome.UNDECIDED]
    return EXIT_CODES[overall([result.outcome for result in results])]


def _chosen(options: Options, slos: Mapping[str, Slo], trace: Trace | None) -> dict[str, Slo]:
    """The objectives of the pipelines that are signed off: those of the trace, else those that were
    named, else all. A trace has its own rate."""
    names = trace.pipelines if trace else options.pipelines or tuple(slos)
    for name in names:
        if name not in slos:
            raise SloError(f"{options.objectives} has no [{name}]: it has {', '.join(slos)}")
    chosen = {name: slo for name, slo in slos.items() if name in names}
    if trace:
        _require_replayable(trace, options.generators)
        return {
            name: replace(slo, rate=trace.rate(name), headroom=0.0, arrivals=POISSON)
            for name, slo in chosen.items()
        }
    if options.arrivals:
        arrivals = Arrivals(options.arrivals, burst_of(options.burst) if options.burst else None)
        chosen = {name: replace(slo, arrivals=arrivals) for name, slo in chosen.items()}
    for name, slo in chosen.items():
        require_burst_fits(f"[{name}]", slo)
        if slo.tested_rate > options.generators * HIGHEST:
            raise SloError(
                f"[{name}]: {slo.tested_rate:g}/s is more than a load generator sends "
                f"({HIGHEST:g}/s): add --generators, or sign off one replica and read "
                "docs/capacity.md"
            )
        seconds, most_s = needed_s(slo), slo.soak_s + PROFILES[options.profile].most_s
        if seconds > most_s:
            click.echo(
                f"{name}: this may stay undecided: with a few misses it takes {seconds / 60:.0f} "
                f'min at {slo.tested_rate:g}/s. Write soak = "{math.ceil(seconds / 60)}m", or '
                "allow more errors",
                err=True,
            )
    return chosen


def _require_replayable(trace: Trace, generators: int) -> None:
    rate = len(trace.requests) / trace.duration_s
    if rate > generators * HIGHEST:
        raise CannotStart(
            f"{trace.name} has {rate:.4g} requests a second at speed {trace.speed:g}, more than "
            f"a load generator sends ({HIGHEST:g}/s): lower --speed, or add --generators"
        )


@contextlib.contextmanager
def _target(options: Options, pipelines: list[str], timeout_s: float) -> Iterator[Target]:
    """What the user named, else a stack of its own for as long as this takes."""
    if options.target:
        if options.keys:
            tenants = tuple(read_keys(options.keys))
        else:
            tenants = (Tenant("", find_key(os.environ)),)
        yield Target(options.target.rstrip("/"), options.grpc_address, tenants, timeout_s)
        return
    click.echo("starting a stack for the sign-off ...", err=True)
    with running(options.repository, pipelines) as stack:
        yield Target(stack.gateway, stack.gateway_grpc, (Tenant("", stack.key),), timeout_s)


@contextlib.contextmanager
def _runners(
    options: Options,
    target: Target,
    served: Mapping[str, Pipeline],
    slos: Mapping[str, Slo],
    trace: Trace | None = None,
) -> Iterator[dict[str, Runner]]:
    """What loads each pipeline, and what replays the trace. CannotStart for what is refused."""
    own = {name: target.source(served[name], slo.apis) for name, slo in slos.items()}
    sources: dict[str, Source] = {**own}
    if trace:
        sources[REPLAY] = target.replay(trace, own)
    if options.generators == 1:
        yield {name: partial(run, source) for name, source in sources.items()}
        return
    apis = {name: slo.apis for name, slo in slos.items()}
    with generators(Setup(target, served, apis, trace), options.generators) as several:
        yield {name: partial(several.run, name) for name in sources}


def _sign_off(
    options: Options,
    results: Sequence[Result],
    runners: Mapping[str, Runner],
    target: Target,
    trace: Trace | None,
) -> None:
    """Fill the results."""
    address = urlsplit(target.url)
    steps = Steps(partial(read_statistics, target.url, target.tenants[0].key))
    memory = Memory(server_process(address.hostname or "", address.port or 80))
    reader = gevent.spawn(_read_forever, memory)
    profile = PROFILES[options.profile]
    loads = [
        _Terminal(runners[result.slo.pipeline], result.slo, len(results) > 1) for result in results
    ]
    try:
        if trace:
            replay = partial(_replay, trace, runners[REPLAY])
            sign_off_replay(results, profile, loads, replay, memory, steps)
            return
        highest = 0.0 if options.only_target else options.generators * HIGHEST
        for result, load in zip(results, loads, strict=True):
            sign_off(result, profile, load, memory, steps, highest)
    finally:
        reader.kill()


def _until_stopped(step: Callable[[], None]) -> bool:
    """Whether a step came to its end."""
    try:
        step()
    except KeyboardInterrupt:
        click.echo("\nstopped: the report is partial, and unsigned", err=True)
        return False
    except GeneratorLost as error:
        click.echo(f"\n{error}: the report is partial, and unsigned", err=True)
        return False
    except Exception:  # what was measured so far is worth a report
        traceback.print_exc()
        click.echo("this is a bug: the report is partial, and unsigned", err=True)
        return False
    return True


def _scale(options: Options, result: Result) -> None:
    result.scaling = _scaling(options, result.slo)


def _lose_one_of_two(options: Options, result: Result) -> None:
    """Kill one of two replicas, in a stack of its own."""
    name = result.slo.pipeline
    click.echo(f"{name}: starting two replicas, to kill one of them ...", err=True)
    try:
        with running(options.repository, [name], replicas=2) as stack:
            target = Target(stack.gateway, stack.gateway_grpc, (Tenant("", stack.key),))
            served = {name: target.pipeline(name)}
            pids = stack.processes.pids("tritonserver")
            with _runners(options, target, served, {name: result.slo}) as runners:
                _lose(options, result, runners[name], replica_of(pids[-1], name))
    except (NotStarted, CannotStart) as error:
        click.echo(f"no replica was killed: {error}", err=True)
        not_killed(result, str(error))


def _lose(options: Options, result: Result, runner: Runner, replica: Replica) -> None:
    profile, rate = PROFILES[options.profile], result.slo.tested_rate
    load = _Terminal(runner, result.slo, is_one_of_many=True)
    try:
        warm_up(result.slo, profile, load)
    except NotMeasured as fault:
        not_killed(result, str(fault))
        return
    killed_at: list[float] = []
    ready_again_s: list[float | None] = []

    def lose() -> None:
        killed_at.append(time.perf_counter())
        replica.kill()
        ready_again_s.append(replica.ready_again_s(result.slo.pipeline))

    killer = gevent.spawn_later(BEFORE_KILL_S, lose)
    try:
        samples = load(rate, BEFORE_KILL_S + profile.killed_s, "one replica killed")
        click.echo("waiting until the replica is ready again ...", err=True)
        killer.get()
    finally:
        killer.kill()
    judge_kill(result, samples, killed_at[0], ready_again_s[0])


def _peer_of(pipeline: Pipeline) -> Peer:
    return AIPERF if pipeline.default_api == "chat" else PERF_ANALYZER


def _cross_check(
    result: Result, target: Target, pipeline: Pipeline, tool: Path, profile: str
) -> None:
    """A closed loop over one API: this generator, its peer, and this generator once more."""
    peer = _peer_of(pipeline)
    # A chat completion takes seconds: in a short run few of them begin and end.
    seconds = max(PROFILES[profile].window_s, 40.0 if peer is AIPERF else 5.0)
    click.echo(f"{pipeline.name}: comparing with {peer.name} ...", err=True)
    key, url = target.tenants[0].key, urlsplit(target.url)
    root = server_process(url.hostname or "", url.port or 80) if peer is AIPERF else None
    servers = ServersTime(root)
    try:
        source = replace(target, tenants=(Tenant("", key),)).source(pipeline, {peer.api: 1.0})
        ours = [_closed(source, seconds, servers)]
        if peer is AIPERF:
            texts = target.texts(ROWS)
            theirs = aiperf(tool, target.url, key, pipeline.name, texts, seconds, servers)
        else:
            data = target.rows(pipeline, ROWS)
            theirs = perf_analyzer(tool, target.url, key, pipeline.name, data, seconds)
        ours.append(_closed(source, seconds, servers))
        result.cross_check = CrossCheck(peer, theirs, tuple(ours))
    except (NotCompared, CannotStart) as error:
        result.cross_check = CrossCheck(peer, why=str(error))


def _closed(source: Source, seconds: float, servers: ServersTime) -> Compared:
    servers.start()
    samples = run_closed(source, CONNECTIONS, seconds)
    served_s = servers.used_s()
    if samples.failed.any():
        fault, count = samples.errors.most_common(1)[0]
        raise NotCompared(f"{count} of {samples.requests} requests failed: {fault}")
    first_token_s = samples.percentile_s(0.5, "first_token")
    return Compared(
        *(samples.rate, 1000 * (samples.percentile_s(0.5) or 0.0), samples.cpu),
        math.nan if first_token_s is None else 1000 * first_token_s,
        1000 * served_s / samples.requests,
    )


def _scaling(options: Options, slo: Slo) -> Scaling | None:
    """How the highest rate grows with replicas, as far as it could be measured."""
    rates: dict[int, float] = {}
    try:
        for replicas in range(1, options.scale_to + 1):
            click.echo(f"{slo.pipeline}, replicas: {replicas} ...", err=True)
            with running(options.repository, [slo.pipeline], replicas=replicas) as stack:
                target = Target(stack.gateway, stack.gateway_grpc, (Tenant("", stack.key),))
                served = {slo.pipeline: target.pipeline(slo.pipeline)}
                with _runners(options, target, served, {slo.pipeline: slo}) as runners:
                    load = _Terminal(runners[slo.pipeline], slo, is_one_of_many=True)
                    highest = options.generators * HIGHEST
                    rate = highest_rate(slo, PROFILES[options.profile], load, highest)
            if not rate:
                break
            rates[replicas] = rate
    except (NotMeasured, NotStarted) as error:
        click.echo(f"the scaling ends here: {error}", err=True)
    return fit(list(rates), list(rates.values())) if 1 in rates and len(rates) > 1 else None


def _read_forever(memory: Memory) -> None:
    while True:
        memory.read()
        gevent.sleep(MEMORY_EVERY_S)


class _Terminal:
    """Loads one pipeline, and says on stderr what it does."""

    def __init__(self, runner: Runner, slo: Slo, is_one_of_many: bool) -> None:
        self._runner, self._arrivals, self._seed = runner, slo.arrivals, 0
        self._name = f"{slo.pipeline}, " if is_one_of_many else ""

    def __call__(
        self, rate: float, seconds: float, phase: str, then: tuple[float, float] | None = None
    ) -> Samples:
        self._seed += 1
        due, whole_s = self._arrivals.schedule(rate, seconds, then, self._seed)
        return _shown(self._runner, f"{self._name}{phase}", due, rate, whole_s)


def _replay(trace: Trace, runner: Runner) -> Samples:
    due = trace.due_s
    return _shown(runner, "replay", due, len(due) / trace.duration_s, trace.duration_s)


def _shown(runner: Runner, name: str, due: Times, rate: float, seconds: float) -> Samples:
    """Load, and say what was measured; on a terminal with the time that is left."""
    title = f"{name}: {rate:.4g}/s"
    is_terminal = sys.stderr.isatty()

    def show(elapsed_s: float) -> None:
        if is_terminal:
            click.echo(f"\r{title}, {seconds - elapsed_s:.0f} s left  ", nl=False, err=True)

    _Load.has_begun = True
    samples = runner(due, rate, seconds, show)
    p99 = milliseconds(samples.percentile_s(0.99))
    failed = int(samples.failed.sum())
    lasted = f"{title} for {samples.duration_s:.0f} s"
    line = f"{lasted}: p99 {p99}, {failed} of {samples.requests} failed"
    if samples.given_up:
        line += f"; {samples.given_up}"
    click.echo("\r" * is_terminal + line, err=True)
    return samples


if __name__ == "__main__":
    sys.exit(main(Options.of_argument(sys.argv[1])))

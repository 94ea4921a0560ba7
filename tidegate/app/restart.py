"""Restart the Tritons of a running stack one after the other, without a failed request.

The gateway stops choosing a replica (a *drain*, which ends by itself if this process dies), what is
under way there ends, the stack's watcher restarts it, and it gets requests again once it serves all
that it served before and gives its golden answers.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from serving.errors import ServingError
from serving.health.restart_request import ask_for_restart, is_asked_for, withdraw
from serving.repository.model_repository import ModelRepository
from serving.triton.control import READY, TritonControl, read_key
from serving.triton.golden import fault
from serving.triton.servers import Server, servers_of
from tidegate.app.claim import NothingRuns, Running, ready_in
from tidegate.app.errors import UsageError
from tidegate.app.paths import Paths
from tidegate.app.progress import Progress
from tidegate.app.top import Gateway, GatewayRefuses, Look

POLL_S = 0.3
RENEW_S = 10.0  # a drain lasts for a minute unless it is renewed
TAKEN_S = 30.0  # within which the watcher begins a restart
START_S = 60.0  # for the new process to be live, besides the time for its models
GOLDEN_S = 60.0
LIFTS = 3  # attempts to lift a drain
OTHERS_S = 10.0  # for the gateway to know what the replica before it serves again
HEALTHY, DRAINED = "tidegate_replica_healthy", "tidegate_replica_drained"


@dataclass(frozen=True)
class RestartOptions:
    """``replica`` is the number of the only one to restart; ``drain_timeout_s`` is how long what is
    under way on one may take to end; ``force``: restart it even if requests fail for it."""

    replica: int | None = None
    drain_timeout_s: float = 60.0
    force: bool = False


@dataclass(frozen=True)
class Restarted:
    """One replica (HOST:GRPC_PORT): how long the requests under way took to end, how long it got
    none in all, and the models whose golden answer it gave."""

    replica: str
    drained_s: float
    away_s: float
    proved: list[str]

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def restart(options: RestartOptions, paths: Paths, report: Progress) -> Iterator[Restarted]:
    """Restart each replica of the stack that runs in this home, in their order.

    Raises NothingRuns without a stack, StillStarting before it is ready, UsageError for a number
    that there is not, and ServingError for what was refused or failed: the replicas after it are
    left as they are.
    """
    running = ready_in(paths.state)
    if running is None:
        raise NothingRuns(f"nothing is running in {paths.home}: tidegate up starts it")
    addresses = [f"127.0.0.1:{ports['grpc']}" for ports in running.replicas]
    chosen = addresses
    if options.replica is not None:
        if options.replica >= len(addresses):
            raise UsageError(
                f"--replica {options.replica}: the stack has {len(addresses)}, and the first is 0"
            )
        chosen = [addresses[options.replica]]
    is_alone = len(addresses) == 1
    if is_alone and not options.force:
        raise ServingError(
            "there is one replica only: requests would fail while it restarts. Start the stack "
            "with --replicas 2, or add --force"
        )
    gateway = Gateway.of(paths, None)
    with ModelRepository(Path(running.repository)).lock("restart", wait_s=0):
        for address in chosen:
            if is_alone:
                report(f"replica {address}: the only one; requests fail until it is back")
            yield _Restart(options, paths, running, gateway, address, report).run(
                is_drained=not is_alone
            )


class _Restart:
    """The restart of one replica."""

    def __init__(
        self,
        options: RestartOptions,
        paths: Paths,
        running: Running,
        gateway: Gateway,
        address: str,
        report: Progress,
    ) -> None:
        self._options, self._paths, self._gateway = options, paths, gateway
        self._repository = Path(running.repository)
        self._address = address
        self._report: Callable[[str], None] = lambda text: report(f"replica {address}: {text}")
        self._is_drained, self._renew_at = False, 0.0
        self._is_asked_for = False

    def run(self, *, is_drained: bool) -> Restarted:
        server = self._server()
        if server is None:
            raise ServingError(
                f"the Triton at {self._address} is not running: tidegate status says more"
            )
        with ExitStack() as stack:
            control = stack.enter_context(
                TritonControl(self._address, read_key(Path(server.key_file)))
            )
            try:
                before = _served(control)
            except _NotYet as error:
                raise ServingError(f"the Triton at {self._address} does not answer") from error
            # One that is wrong already is not waited for.
            proved = [name for name in _with_golden(control) if not _fault(control, name)]
            began = time.monotonic()
            if is_drained:
                self._require_others()
                stack.enter_context(self._drain())
                self._wait_drained()
            drained = time.monotonic()
            self._report("restarting Triton")
            self._restart(server)
            self._report(f"loading {len(before)} models")
            self._wait(
                lambda: before <= _served(control),
                START_S + server.load_timeout_s,
                "does not serve what it served before",
            )
            samples = "golden sample" if len(proved) == 1 else "golden samples"
            self._report(f"asking {len(proved)} {samples}")
            for name in proved:
                self._wait(
                    lambda name=name: not _fault(control, name),  # type: ignore[misc]
                    GOLDEN_S,
                    f"does not give the golden answer of {name}",
                )
            self._wait(
                lambda: self._metric(HEALTHY) == 1, GOLDEN_S, "is not yet up for the gateway"
            )
        away_s = time.monotonic() - began
        self._report(f"gets requests again after {away_s:.1f} s")
        return Restarted(self._address, round(drained - began, 1), round(away_s, 1), proved)

    def _server(self) -> Server | None:
        servers = servers_of(self._paths.state, self._repository)
        return next((server for server in servers if server.address == self._address), None)

    def _require_others(self) -> None:
        """ServingError unless other replicas serve every model of this one, or ``force``."""
        try:
            self._wait(lambda: not self._only_here(), OTHERS_S, "cannot be done without")
        except _TimeIsUp:
            if not self._options.force:
                raise ServingError(
                    f"no other replica that is up serves {', '.join(self._only_here())}: requests "
                    f"would fail while {self._address} restarts. Wait until the others are healthy "
                    "(tidegate top), or add --force"
                ) from None

    def _only_here(self) -> list[str]:
        """The models that no other replica serves that is up and right."""
        replicas = {
            str(replica["address"]).partition("/")[0]: replica
            for replica in self._gateway.look().replicas
        }
        if self._address not in replicas:
            raise _NotUsed(
                f"the gateway does not use the replica {self._address}: `replicas` in gateway.toml "
                "replaces the list"
            )
        elsewhere = {
            model
            for address, replica in replicas.items()
            if address != self._address and replica["health"] == "up"
            for model in set(replica["models"]) - set(replica["probes"])
        }
        return sorted(set(replicas[self._address]["models"]) - elsewhere)

    @contextmanager
    def _drain(self) -> Iterator[None]:
        """While entered, the gateway sends no new requests there. The drain is lifted at the end,
        but not after a failure once Triton was to be restarted: who knows whether it is. Then it
        ends by itself."""
        self._report("draining: it gets no new requests")
        self._is_drained = True
        try:
            yield
        except BaseException:
            if not self._is_asked_for:
                self._lift_drain()
            raise
        finally:
            self._is_drained = False
        self._lift_drain()

    def _lift_drain(self) -> None:
        # Without a gateway the drain ends by itself, and the first error is the one to report.
        # One that is busy is asked again: else the replica would be drained for up to a minute.
        for _ in range(LIFTS):
            with suppress(ServingError):
                self._gateway.lift_drain(self._address)
                return

    def _wait_drained(self) -> None:
        options = self._options
        try:
            self._wait(
                lambda: self._metric(DRAINED) == 1,
                options.drain_timeout_s,
                "still has requests or sequences under way, or no other replica takes its requests",
            )
        except _TimeIsUp as error:
            if not options.force:
                raise ServingError(
                    f"{error}; it was not restarted: allow more time with --drain-timeout, or end "
                    "them with --force"
                ) from None
            self._report(f"{error}; they fail now (--force)")

    def _restart(self, server: Server) -> None:
        state = self._paths.state
        self._is_asked_for = True
        ask_for_restart(state, self._address, server.pid)
        try:
            self._wait(
                lambda: not is_asked_for(state, self._address),
                TAKEN_S,
                "is not restarted by tidegate up, which may be busy",
            )
        finally:
            withdraw(state, self._address)
        self._wait(lambda: self._is_other(server), START_S, "has not started again")

    def _is_other(self, server: Server) -> bool:
        now = self._server()
        return now is not None and now.pid != server.pid

    def _metric(self, name: str) -> float | None:
        look: Look = self._gateway.look()
        return next(
            (
                value
                for labels, value in look.samples.get(name, ())
                if labels["replica"].partition("/")[0] == self._address
            ),
            None,
        )

    def _wait(self, condition: Callable[[], bool], timeout_s: float, otherwise: str) -> None:
        """Poll until the condition holds, and keep the replica drained meanwhile. A gateway that
        does not answer for a while (a worker is replaced, the machine is busy) is asked again.
        Raises _TimeIsUp, which says ``otherwise`` and what the gateway said last; at once
        GatewayRefuses and _NotUsed."""
        deadline = time.monotonic() + timeout_s
        while True:
            hitch = ""
            try:
                if self._is_drained and time.monotonic() >= self._renew_at:
                    self._gateway.drain(self._address)
                    self._renew_at = time.monotonic() + RENEW_S
                if condition():
                    return
            except _NotYet:
                pass
            except (GatewayRefuses, _NotUsed):
                raise
            except ServingError as error:
                hitch = f" ({error})"
            if time.monotonic() > deadline:
                raise _TimeIsUp(f"{self._address} {otherwise} after {timeout_s:.0f} s{hitch}")
            time.sleep(POLL_S)


class _TimeIsUp(ServingError):
    """What was waited for did not happen in time."""


class _NotUsed(ServingError):
    """The gateway does not use the replica."""


class _NotYet(Exception):
    """The server does not answer yet."""


def _served(control: TritonControl) -> set[tuple[str, str]]:
    """The models, each with a version, that are loaded now."""
    try:
        return {(model.name, model.version) for model in control.index() if model.state == READY}
    except ServingError as error:
        raise _NotYet from error


def _with_golden(control: TritonControl) -> list[str]:
    """The served models that have a golden sample."""
    from modelspec.declaration import Declaration

    names = sorted({name for name, _ in _served(control)})
    return [name for name in names if Declaration.of(control.config(name)).probe is not None]


def _fault(control: TritonControl, name: str) -> str:
    """What is wrong with the model's golden answer, or ''."""
    try:
        return fault(control, name, control.config(name))
    except ServingError as error:
        raise _NotYet from error

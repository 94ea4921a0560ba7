"""One running Triton, as a publisher uses it: load, probe, drop, and see what failed to load."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from serving.errors import NotOurServer, PublishFailed, ServingError
from serving.health.work import Work
from serving.triton.control import READY, UNAVAILABLE, UNLOADED, ModelState, TritonControl, read_key
from serving.triton.golden import IS_LATE, fault
from serving.triton.servers import Server

BUSY_S = 300.0  # how long a golden answer may take that is queued behind clients' requests
LIVE_TIMEOUT_S = 5.0


class Replica:
    """One server, by its control connection; ``server_pid`` is 0 if it is not known."""

    def __init__(self, control: TritonControl, server_pid: int) -> None:
        self.control, self.server_pid = control, server_pid

    @property
    def address(self) -> str:
        return self.control.address

    def newest(self, model: str) -> int:
        """The highest version of the model that the server remembers; 0 for none."""
        versions = [int(state.version) for state in self._states(model) if state.version]
        return max(versions, default=0)

    def serves(self, model: str) -> bool:
        """Whether a version of the model is loaded now."""
        return any(state.state == READY for state in self._states(model))

    def served(self, model: str) -> list[int]:
        """The versions of the model that are loaded now, ascending."""
        return sorted(
            int(state.version)
            for state in self._states(model)
            if state.state == READY and state.version
        )

    def failed(self, models: Sequence[str]) -> list[tuple[str, int]]:
        """(model, version) pairs that did not load. One is enough for the server's own readiness to
        say 400."""
        return [
            (state.name, int(state.version))
            for state in self.control.index()
            if state.name in models
            and state.state == UNAVAILABLE
            and state.version
            and state.reason != UNLOADED
        ]

    def require_golden(self, model: str, config: ModelConfig, *, is_proved: bool = False) -> None:
        """PublishFailed unless the model gives its golden answer; one without a sample passes.

        A model that is late while it, or one of its steps, completes clients' requests is busy. It
        gets ``BUSY_S``; if it ``is_proved`` (it gave the answer under another name) it passes at
        once.
        """
        work = Work(self.control)
        parts = work.parts(model)
        before = work.counts(parts)
        problem = fault(self.control, model, config)
        if problem.endswith(IS_LATE) and work.counts(parts) != before:
            problem = "" if is_proved else fault(self.control, model, config, BUSY_S)
        if problem:
            raise PublishFailed(f"{model} at {self.address} {problem}")

    def drop(self, model: str) -> None:
        """Unload the model if the server has it; its members stay loaded."""
        if self.serves(model):
            self.control.unload(model)

    def _states(self, model: str) -> list[ModelState]:
        return [state for state in self.control.index() if state.name == model]


@contextmanager
def connected(servers: Sequence[Server]) -> Iterator[list[Replica]]:
    """A Replica for each server that answers; a caller that goes on without some must say so.

    NotOurServer if the key of one cannot be read."""
    with ExitStack() as stack:
        replicas = []
        for server in servers:
            try:
                key = read_key(Path(server.key_file))
            except (OSError, ServingError) as error:
                raise NotOurServer(
                    f"the Triton at {server.address} serves {server.repository}, but its key "
                    f"cannot be read ({error}), so it cannot be updated; nothing was changed. Run "
                    "this as the server's user, on the machine or in the container that the "
                    "server runs in"
                ) from error
            control = TritonControl(server.address, key, server.load_timeout_s)
            stack.enter_context(control)
            replicas.append(Replica(control, 0 if server.is_elsewhere else server.pid))
        yield [replica for replica in replicas if replica.control.is_live(LIVE_TIMEOUT_S)]

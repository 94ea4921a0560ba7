"""A publisher's hold on one running Triton: load, probe, drop, and mend what failed to load."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from serving.control import ModelState, TritonControl, read_key
from serving.errors import NotOurServer, PublishFailed, ServingError
from serving.golden import IS_LATE, fault
from serving.servers import Server
from serving.work import Work

BUSY_S = 300.0  # what a golden answer may take that stands behind requests of others
LIVE_TIMEOUT_S = 5.0
READY, UNAVAILABLE, UNLOADED = "READY", "UNAVAILABLE", "unloaded"


class Replica:
    """One server, by its control connection; ``server_pid`` is 0 where that is not known."""

    def __init__(self, control: TritonControl, server_pid: int) -> None:
        self.control, self.server_pid = control, server_pid

    @property
    def address(self) -> str:
        return self.control.address

    def newest(self, model: str) -> int:
        """The highest version of the model that the server remembers; 0 for none."""
        found = [int(each.version) for each in self._states(model) if each.version]
        return max(found, default=0)

    def serves(self, model: str) -> bool:
        """Whether a version of the model is loaded now."""
        return any(each.state == READY for each in self._states(model))

    def served(self, model: str) -> list[int]:
        """The versions of the model that are loaded now, ascending."""
        return sorted(
            int(each.version)
            for each in self._states(model)
            if each.state == READY and each.version
        )

    def failed(self, models: Sequence[str]) -> list[tuple[str, int]]:
        """Versions that did not load. One of them makes the server's own readiness say 400."""
        return [
            (each.name, int(each.version))
            for each in self.control.index()
            if each.name in models
            and each.state == UNAVAILABLE
            and each.version
            and each.reason != UNLOADED
        ]

    def require_golden(self, model: str, config: ModelConfig, *, is_proved: bool = False) -> None:
        """PublishFailed unless the model gives its golden answer; one without a sample passes.

        One that is late while it, or a step of it, completes requests of others is busy. It gets
        ``BUSY_S``; if it ``is_proved`` (it gave the answer under another name) it passes at once.
        """
        work = Work(self.control)
        parts = work.parts(model)
        before = work.counts(parts)
        wrong = fault(self.control, model, config)
        if wrong.endswith(IS_LATE) and work.counts(parts) != before:
            wrong = "" if is_proved else fault(self.control, model, config, BUSY_S)
        if wrong:
            raise PublishFailed(f"{model} at {self.address} {wrong}")

    def drop(self, model: str) -> None:
        """Unload the model if the server has it; what it is made of stays loaded."""
        if self.serves(model):
            self.control.unload(model)

    def _states(self, model: str) -> list[ModelState]:
        return [each for each in self.control.index() if each.name == model]


@contextmanager
def connected(servers: Sequence[Server]) -> Iterator[list[Replica]]:
    """A Replica for each server that answers: whoever goes on without one of them must say so.

    NotOurServer when the key of one cannot be read."""
    with ExitStack() as stack:
        replicas = [
            Replica(
                stack.enter_context(TritonControl(each.address, _key(each), each.load_timeout_s)),
                0 if each.is_elsewhere else each.pid,
            )
            for each in servers
        ]
        yield [replica for replica in replicas if replica.control.is_live(LIVE_TIMEOUT_S)]


def newest_of(replicas: Sequence[Replica], model: str) -> int:
    """The highest version that any of the servers remembers."""
    return max((replica.newest(model) for replica in replicas), default=0)


def _key(server: Server) -> str:
    try:
        return read_key(Path(server.key_file))
    except (OSError, ServingError) as error:
        raise NotOurServer(
            f"the Triton at {server.address} serves {server.repository}, and its key cannot be read"
            f" ({error}), so it cannot be told of anything; nothing was changed. Run this as the "
            "user, and on the machine or in the container, that the server runs as"
        ) from error

"""One replica of the servers: killed, and waited for until it serves again."""

import contextlib
import http.client
import os
import signal
import time
from dataclasses import dataclass

import psutil

from loadtests.preflight import CannotStart

ANSWER_S = 2.0  # a server that takes longer is not ready
NOT_BACK_S = 180.0  # after so long nobody starts it again
POLL_S = 0.1
_READY = "/v2/health/ready"


@dataclass(frozen=True)
class Replica:
    """A Triton of this machine: its process, and where it says that it is ready."""

    pid: int
    host: str
    port: int

    def serves(self, pipeline: str) -> bool:
        """A Triton that is started again is ready long before it has loaded its models."""
        return _is_ok(self.host, self.port, f"/v2/models/{pipeline}/ready")

    def kill(self) -> None:
        """With SIGKILL, and returns when it has ended."""
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.kill(self.pid, signal.SIGKILL)
        while _runs(self.pid):
            time.sleep(POLL_S / 10)

    def ready_again_s(self, pipeline: str) -> float | None:
        """The seconds from now until it serves it; None if it does not in three minutes."""
        began = time.monotonic()
        while not self.serves(pipeline):
            if time.monotonic() - began > NOT_BACK_S:
                return None
            time.sleep(POLL_S)
        return time.monotonic() - began


def replica_of(pid: int, pipeline: str) -> Replica:
    """The Triton with this process id. CannotStart if it is none, is not of this machine, may not
    be killed by this user, or does not serve the pipeline: then it is no replica of the target."""
    replica = _triton_of(pid)
    if not replica.serves(pipeline):
        raise CannotStart(
            f"process {pid} does not serve {pipeline}, so it is no replica of the target"
        )
    return replica


def _triton_of(pid: int) -> Replica:
    try:
        process = psutil.Process(pid)
        connections = process.net_connections("tcp")
        os.kill(pid, 0)
    except psutil.NoSuchProcess:
        raise CannotStart(f"there is no process {pid} on this machine") from None
    except (psutil.AccessDenied, PermissionError):
        raise CannotStart(f"process {pid} is of another user: it cannot be killed") from None
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.laddr:
            host, port = connection.laddr[:2]
            host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
            if _is_ok(host, port, _READY):
                return Replica(pid, host, port)
    raise CannotStart(
        f"process {pid} is no replica: it answers nowhere at {_READY}. Pass the process id of a "
        "tritonserver"
    )


def _is_ok(host: str, port: int, path: str) -> bool:
    """Whether a server there says so; also False if none is there."""
    connection = http.client.HTTPConnection(host, port, timeout=ANSWER_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

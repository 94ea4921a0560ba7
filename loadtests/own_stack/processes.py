"""Start a server, wait until it answers, and end it by its process id."""

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from loadtests.own_stack.errors import NotStarted

STOP_S = 40.0


@dataclass(frozen=True)
class Server:
    """A child process in its own session, so that its workers end with it."""

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path

    def wait_ready(self, url: str, timeout_s: float) -> None:
        """Return when ``url`` answers 200; NotStarted with the end of the log if it does not."""
        deadline = time.monotonic() + timeout_s
        while not responds(url):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise NotStarted(f"{self.name} did not start:\n{self.tail()}")
            time.sleep(0.2)

    def tail(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-2000:]

    def paused(self) -> AbstractContextManager[None]:
        """It and its workers get no processor meanwhile."""
        return self._between(signal.SIGSTOP, signal.SIGCONT)

    def resumed(self) -> AbstractContextManager[None]:
        """The opposite, within ``paused``."""
        return self._between(signal.SIGCONT, signal.SIGSTOP)

    @contextmanager
    def _between(self, before: signal.Signals, after: signal.Signals) -> Iterator[None]:
        os.killpg(self.process.pid, before)
        try:
            yield
        finally:
            os.killpg(self.process.pid, after)

    def stop(self) -> None:
        """Terminate it, then kill whatever is left of its session."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


def start(name: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> Server:
    """Start ``command``; its output goes to ``log``."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Server(name, process, log)


def responds(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310 (our own address)
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def free_ports(count: int) -> list[int]:
    """Distinct ports that nothing listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()

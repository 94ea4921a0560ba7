"""Start a whole stack (``tidegate up``) in a scratch folder, on free ports, and stop it again."""

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from serving.triton.ports import free_ports

ROOT = Path(__file__).parent.parent
# A cold machine converts every pipeline first.
START_TIMEOUT_S = 1200.0
STOP_TIMEOUT_S = 120.0
# The known pipelines of the fixture ``built``.
QUICK = ("text_embedding", "image_classification")


@dataclass
class RunningStack:
    """A stack under test. ``key`` is its dev key; ``home`` holds its repository and state."""

    home: Path
    process: subprocess.Popen[str]
    gateway_port: int
    http_port: int
    grpc_port: int
    metrics_port: int
    admin_port: int
    grpc_api_port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.gateway_port}"

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def http_address(self) -> str:
        return f"127.0.0.1:{self.http_port}"

    @property
    def key(self) -> str:
        return (self.home / ".tidegate" / "dev.key").read_text()

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    @property
    def output(self) -> str:
        return (self.home / "up.log").read_text()

    def post(self, path: str, **options: Any) -> httpx.Response:
        return httpx.post(self.url + path, headers=self.headers, timeout=30, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.url + path, headers=self.headers, timeout=30, **options)

    def tidegate(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run the command line in this stack's home; ten minutes are for a hang, not a
        conversion."""
        return subprocess.run(
            [sys.executable, "-m", "tidegate", *arguments],
            env={**environment(self.home), "TIDEGATE_URL": self.url},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
            **options,
        )

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def triton(self) -> psutil.Process:
        return next(process for process in self.family() if process.name() == "tritonserver")

    def stubs(self, model: str) -> list[psutil.Process]:
        """The Python processes of one model."""
        return [
            process
            for process in self.family()
            if process.status() != psutil.STATUS_ZOMBIE
            and "python_backend_stub" in process.name() + " ".join(process.cmdline()[:1])
            and f"/{model}/" in " ".join(process.cmdline())
        ]


def environment(home: Path) -> dict[str, str]:
    """This process's environment without Tidegate's own variables."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("TIDEGATE_")}
    return {**inherited, "TIDEGATE_HOME": str(home), "PYTHONUNBUFFERED": "1"}


def copy_repository(home: Path) -> None:
    """Copy the working tree's repository into ``home``, with what is already built. Tuned configs
    are left out: tests serve the committed ones."""
    ignored = shutil.ignore_patterns("tuned.pbtxt")
    source, target = ROOT / "model_repository", home / "model_repository"
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=ignored)


def launch(
    home: Path, *arguments: str, ports: list[int] | None = None, **variables: str
) -> RunningStack:
    """Start ``tidegate up`` in ``home``, with these environment variables; returns at once."""
    # In one call: two could find the same port.
    gateway, http, grpc, metrics, api, admin = [*ports, *free_ports(2)] if ports else free_ports(6)
    command = [sys.executable, "-m", "tidegate", "up", *arguments]
    for flag, port in (
        ("gateway-port", gateway),
        ("grpc-port", api),
        ("admin-port", admin),
        ("triton-http-port", http),
        ("triton-grpc-port", grpc),
        ("triton-metrics-port", metrics),
    ):
        command.append(f"--{flag}={port}")
    with (home / "up.log").open("w") as log:
        process = subprocess.Popen(
            command,
            env={**environment(home), **variables},
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
        )
    return RunningStack(home, process, gateway, http, grpc, metrics, admin, api)


def wait_ready(stack: RunningStack, timeout_s: float = START_TIMEOUT_S) -> None:
    """Return when the stack prints its startup banner; fail with its output if it ends first.

    The time is for a hang: a stack that converts nothing has taken 65 s on a busy machine.
    """
    deadline = time.monotonic() + timeout_s
    try:
        while "Tidegate is ready." not in stack.output:
            assert stack.process.poll() is None, f"the stack ended:\n{stack.output}"
            assert time.monotonic() < deadline, f"the stack did not start:\n{stack.output}"
            time.sleep(0.05)
    except BaseException:
        stop(stack)  # or it would run on, beside the other tests
        raise


def stop(stack: RunningStack, number: int = signal.SIGTERM) -> int:
    """Signal the stack and return its exit code; fail if it does not end."""
    if stack.process.poll() is None:
        stack.process.send_signal(number)
    return stack.process.wait(STOP_TIMEOUT_S)


@contextlib.contextmanager
def policy_of(home: Path, text: str = "") -> Iterator[Path]:
    """``home`` with this gateway.toml (none if ``text`` is empty), and always without one
    afterwards: other tests start stacks there too."""
    policy = home / ".tidegate" / "gateway.toml"
    try:
        if text:
            policy.parent.mkdir(exist_ok=True)
            policy.write_text(text)
        yield policy
    finally:
        policy.unlink(missing_ok=True)


def put_policy(stack: RunningStack, text: str) -> None:
    """Replace the gateway.toml of a one-worker stack; returns once it is in force."""
    policy = stack.home / ".tidegate" / "gateway.toml"
    data = f"{text}\n# end\n".encode()  # known to be complete: wider rights apply at once
    policy.with_suffix(".new").write_bytes(data)
    policy.with_suffix(".new").replace(policy)
    version = hashlib.sha256(data).hexdigest()[:12]
    url = f"http://127.0.0.1:{stack.admin_port}/admin/policy"

    def is_in_force() -> bool:
        return httpx.get(url, headers=stack.headers, timeout=30).json().get("version") == version

    wait_until(is_in_force, 30, "the policy")


def wait_until(condition: Any, timeout_s: float, what: str) -> None:
    """Poll ``condition`` until it is true; fail with ``what`` if it does not happen in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.05)

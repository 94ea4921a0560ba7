"""What Locust calls while it runs: our options, the record of requests, the verdict at the end."""

import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import gevent  # type: ignore[import-untyped]
from locust import events

from loadtests.target import CannotStart
from loadtests.verdict import Demand, Record, as_json, as_text, faults

RECORD = Record()
LAUNCH: dict[str, str | None] = {}


def register() -> None:
    """Have Locust call what is below."""
    hooks: Any = events  # its add_listener has no types
    hooks.init_command_line_parser.add_listener(add_options)
    hooks.init.add_listener(prepare)
    hooks.test_start.add_listener(forget_last_run)
    hooks.request.add_listener(record_request)
    hooks.user_error.add_listener(record_crash)
    hooks.quitting.add_listener(decide)


def add_options(parser: Any) -> None:
    parser.add_argument(
        "--grpc-address",
        default="127.0.0.1:8001",
        env_var="TIDEGATE_TRITON_GRPC_ADDRESS",
        include_in_web_ui=False,
        help="Where Triton listens for gRPC",
    )
    parser.add_argument("--max-p99-ms", type=float, include_in_web_ui=False)
    parser.add_argument("--summary-file", include_in_web_ui=False)


def prepare(environment: Any, **_: Any) -> None:
    """Before the UI can be reached, and before the first user."""
    LAUNCH["host"] = environment.host
    # gevent's clock stands at the time before our imports: --run-time would be short by them.
    gevent.get_hub().loop.update_now()
    # Ctrl-C, handled by the loop as SIGTERM is. Python would raise KeyboardInterrupt in whichever
    # user runs; one that holds a lock of gRPC's never gives it back, and Locust never ends.
    gevent.signal_handler(signal.SIGINT, os.kill, os.getpid(), signal.SIGTERM)
    # `make load HEADLESS=1 > report.txt` should hold the report; Locust prints it to stderr.
    for handler in logging.getLogger("locust.stats_logger").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stdout)


def require_launch_host(host: str | None) -> None:
    """The API key goes only where the command line said: the UI takes a new host from any web
    page that the operator's browser has open (it has no CSRF token)."""
    if host != LAUNCH.get("host"):
        raise CannotStart(f"the API key is not sent to {host}: start again with --url {host}")


def forget_last_run(**_: Any) -> None:
    RECORD.restart()


def record_request(
    request_type: str, name: str, response_time: float, exception: Any, **_: Any
) -> None:
    kind = "grpc" if request_type == "gRPC" else "rest"
    RECORD.add(kind, name, response_time, failed=exception is not None)


def record_crash(exception: BaseException, **_: Any) -> None:
    RECORD.crash(exception)


def decide(environment: Any, **_: Any) -> None:
    """Set the exit code; Locust prints its tables after this."""
    environment.runner.stop()  # after Ctrl-C users are still at it
    demand = _demand(environment)
    environment.process_exit_code = 1 if faults(RECORD, demand) else 0
    environment.events.quit.add_listener(lambda **_: _report(environment, demand))


def _report(environment: Any, demand: Demand) -> None:
    options = environment.parsed_options
    if not options.headless and not RECORD.figures():
        return  # the UI was opened and closed
    sys.stdout.write(as_text(RECORD, demand))
    if options.summary_file:
        Path(options.summary_file).write_text(as_json(RECORD, demand), encoding="utf-8")


def _demand(environment: Any) -> Demand:
    """In the UI a person chooses what runs, so nothing is missing there."""
    options = environment.parsed_options
    users = environment.user_classes if options.headless else []
    return Demand(tuple(sorted(user.kind for user in users)), options.max_p99_ms)

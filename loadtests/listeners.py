"""Locust's event listeners: our options, the record of requests, the verdict at the end."""

import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import gevent
from locust import events

from loadtests.preflight import CannotStart
from loadtests.signoff.slo import APIS
from loadtests.verdict import Demand, Record, as_json, as_text, faults

RECORD = Record()
# Before the name of a part of a streamed request, which is shown beside requests and is none.
PART = "of a stream: "
LAUNCH: dict[str, str | None] = {}


def register() -> None:
    """Register the listeners below with Locust."""
    hooks: Any = events  # its add_listener is untyped
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
        help="Triton's gRPC address",
    )
    parser.add_argument("--pipeline", default="", help="the pipeline that PipelineUser calls")
    parser.add_argument("--api", action="append", default=[], include_in_web_ui=False)
    parser.add_argument("--gateway-grpc-address", default="", include_in_web_ui=False)
    parser.add_argument("--max-p99-ms", type=float, include_in_web_ui=False)
    parser.add_argument("--summary-file", include_in_web_ui=False)


def prepare(environment: Any, **_: Any) -> None:
    """Runs before the UI is reachable, and before the first user starts."""
    LAUNCH["host"] = environment.host
    # gevent's clock still shows the time before our imports, which would shorten --run-time.
    gevent.get_hub().loop.update_now()
    # Let the loop handle Ctrl-C like SIGTERM. Python would raise KeyboardInterrupt in whichever
    # user is running; if that one holds a gRPC lock, it is never released and Locust never ends.
    gevent.signal_handler(signal.SIGINT, os.kill, os.getpid(), signal.SIGTERM)
    # `make load HEADLESS=1 > report.txt` should hold the report; Locust prints it to stderr.
    for handler in logging.getLogger("locust.stats_logger").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stdout)


def require_launch_host(host: str | None) -> None:
    """Send the API key only to the host on the command line: the UI accepts a new host from any
    web page that the operator's browser has open (it has no CSRF token)."""
    if host != LAUNCH.get("host"):
        raise CannotStart(f"the API key is not sent to {host}: start again with --url {host}")


def forget_last_run(**_: Any) -> None:
    RECORD.restart()


def record_request(
    request_type: str, name: str, response_time: float, exception: Any, **_: Any
) -> None:
    if request_type.startswith(PART):
        RECORD.add_part(request_type.removeprefix(PART), name, response_time)
        return
    protocol = {"gRPC": "grpc"}.get(request_type, "rest")
    if request_type in APIS:
        protocol, name = "pipeline", f"{name} ({request_type})"
    RECORD.add(protocol, name, response_time, failed=exception is not None)


def record_crash(exception: BaseException, **_: Any) -> None:
    RECORD.crash(exception)


def decide(environment: Any, **_: Any) -> None:
    """Set the exit code; Locust prints its tables after this."""
    environment.runner.stop()  # after Ctrl-C users are still running
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
    """In the UI the operator chooses which users run, so none can be missing there."""
    options = environment.parsed_options
    users = environment.user_classes if options.headless else []
    return Demand(tuple(sorted(user.protocol for user in users)), options.max_p99_ms)

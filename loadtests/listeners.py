"""What Locust calls while it runs: our options, the record of requests, the verdict at the end."""

import sys
from pathlib import Path
from typing import Any

from locust import events

from loadtests.verdict import Demand, Record, as_json, as_text, faults

RECORD = Record()


def register() -> None:
    """Have Locust call what is below."""
    hooks: Any = events  # its add_listener has no types
    hooks.init_command_line_parser.add_listener(add_options)
    hooks.test_start.add_listener(forget_last_run)
    hooks.request.add_listener(record_request)
    hooks.user_error.add_listener(record_crash)
    hooks.quitting.add_listener(decide)


def add_options(parser: Any) -> None:
    parser.add_argument(
        "--grpc-address",
        default="127.0.0.1:8001",
        env_var="TIDEGATE_TRITON_GRPC_ADDRESS",
        help="Where Triton listens for gRPC",
    )
    parser.add_argument("--max-p99-ms", type=float, include_in_web_ui=False)
    parser.add_argument("--summary-file", include_in_web_ui=False)


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

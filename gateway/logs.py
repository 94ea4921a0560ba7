"""The gateway's own log: one format for every worker.

    2026-11-26 14:50:01,234 WARNING 4711 5f3ce8817dee9a81 upstream INTERNAL: ...

Time, level, the worker's process id, the request id if there is a request, and what happened.
"""

import logging

from gateway.upstream.triton_errors import request_id

FORMAT = "%(asctime)s %(levelname)s %(process)d %(message)s"


class _RequestIdFormatter(logging.Formatter):
    """Prefixes messages with the id of the task's request, unless they start with it already."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        identifier = request_id.get()
        if identifier and not record.message.startswith(f"{identifier} "):
            record.message = f"{identifier} {record.message}"
        return super().formatMessage(record)


def set_up() -> None:
    """Log to stderr; call it in each process. Does nothing if logging is set up already."""
    handler = logging.StreamHandler()
    handler.setFormatter(_RequestIdFormatter(FORMAT))
    logging.basicConfig(level=logging.INFO, handlers=[handler])

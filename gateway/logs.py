"""The gateway's own log: one format for every worker.

    2026-11-26 14:50:01,234 WARNING 4711 5f3ce8817dee9a81 upstream INTERNAL: ...

Time, level, the worker's process, the request's id where there is a request, and what happened.
"""

import logging

from gateway.upstream.server import request_id

FORMAT = "%(asctime)s %(levelname)s %(process)d %(message)s"


class _OfARequest(logging.Formatter):
    """Puts the id of the task's request in front of what does not begin with one."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        identifier = request_id.get()
        if identifier and not record.message.startswith(f"{identifier} "):
            record.message = f"{identifier} {record.message}"
        return super().formatMessage(record)


def set_up() -> None:
    """Log to stderr; to be called in each process. Whoever has set up logging keeps it."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OfARequest(FORMAT))
    logging.basicConfig(level=logging.INFO, handlers=[handler])

"""An ASGI application behind a real uvicorn, in a thread of the test's process."""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import uvicorn


@contextlib.contextmanager
def served(app: Any, **options: Any) -> Iterator[int]:
    """The port of 127.0.0.1 that serves ``app`` with these options of ``uvicorn.Config``."""
    config = uvicorn.Config(app, port=0, ws="none", lifespan="off", log_config=None, **options)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(60)
    assert not thread.is_alive()

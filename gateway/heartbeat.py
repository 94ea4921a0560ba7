"""A sign of life for whoever started the gateway, from each worker's event loop, twice a second.

A worker that is stopped, or whose loop hangs, holds its connections and answers nobody, and to its
parent it looks alive. The datagrams need no disk, and nobody waits for one to be taken.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable

BEAT_S = 0.5
# Set by whoever listens: the name of an abstract Unix datagram socket.
SOCKET = "TIDEGATE_HEARTBEAT_SOCKET"
READY, UNREADY = b"ready", b"unready"


async def heartbeat(name: str, is_ready: Callable[[], bool]) -> None:
    """Until it is cancelled. Each sign says whether the worker is ready, too."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        address = b"\0" + name.encode()
        while True:
            # Nobody listens any more, or there are enough that were not taken: both are no harm.
            with contextlib.suppress(OSError):
                sender.sendto(READY if is_ready() else UNREADY, address)
            await asyncio.sleep(BEAT_S)

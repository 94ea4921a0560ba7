"""A heartbeat for the process that started the gateway, from each worker's event loop.

A worker that is stopped, or whose loop hangs, holds its connections and serves nobody, but looks
alive to its parent. The datagrams need no disk, and the sender never waits for a receiver.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable

HEARTBEAT_S = 0.5
# Set by the process that listens: the name of an abstract Unix datagram socket.
SOCKET = "TIDEGATE_HEARTBEAT_SOCKET"
READY, UNREADY = b"ready", b"unready"


async def heartbeat(name: str, is_ready: Callable[[], bool]) -> None:
    """Send a heartbeat every ``HEARTBEAT_S``, with whether the worker is ready, until cancelled."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        address = b"\0" + name.encode()
        while True:
            # Fails if nobody listens any more, or the queue is full: both are harmless.
            with contextlib.suppress(OSError):
                sender.sendto(READY if is_ready() else UNREADY, address)
            await asyncio.sleep(HEARTBEAT_S)

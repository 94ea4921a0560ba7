"""The other end of a connection that vanishes without a word: its machine lost power, or its name
means another container now."""

import asyncio
import socket

# Then the connection is lost after so many seconds, not after TCP's quarter of an hour.
VANISHED_S = 20


def lose_what_vanishes(transport: asyncio.BaseTransport) -> None:
    """Let TCP find out by itself, whether anything is sent or not. So an idle connection also stays
    open behind a NAT or a load balancer."""
    peer = transport.get_extra_info("socket")
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, VANISHED_S // 2)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, VANISHED_S // 4)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, VANISHED_S * 1000)

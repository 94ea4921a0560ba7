"""Triton's stock gRPC client in a process that gevent has patched as a whole."""

from typing import ClassVar

import grpc.experimental.gevent
from tritonclient.grpc import InferenceServerClient

# Without this a gRPC call blocks gevent's loop, and with it every other greenlet.
grpc.experimental.gevent.init_gevent()


class TritonClient(InferenceServerClient):  # type: ignore[misc]  # tritonclient ships no types
    """A client that is closed by the end of the process; until then the next one that is needed for
    its address is this one.

    The stock client closes its channel again when it is garbage-collected. Under gevent (grpcio
    1.85) such a close was seen to wait forever on gRPC's own lock, in
    ``gevent_decrement_channel_count``, and the process with it.
    """

    _idle: ClassVar[dict[str, list["TritonClient"]]] = {}

    def __init__(self, address: str) -> None:
        # Its own connection, as a separate process would have: otherwise channels share one.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        super().__init__(address, channel_args=options)
        self._address = address

    @classmethod
    def take(cls, address: str) -> "TritonClient":
        idle = cls._idle.get(address)
        return idle.pop() if idle else cls(address)

    def give_back(self) -> None:
        """Let another caller have it: its stream, if it had one, is stopped."""
        self._idle.setdefault(self._address, []).append(self)

    def __del__(self) -> None:
        """Nothing: see above."""

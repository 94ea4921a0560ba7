"""Two gateways in this process, in front of one Triton."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.core import Gateway
from gateway.settings import Settings
from tests.running import RunningStack


@asynccontextmanager
async def both_ways(stack: RunningStack) -> AsyncIterator[list[Gateway]]:
    """One that has an HTTP upstream, and one that has gRPC alone."""
    key_file = stack.home / ".tidegate" / "triton.key"
    addresses = (f"{stack.grpc_address}/{stack.http_port}", stack.grpc_address)
    gateways = [
        Gateway(Settings(replicas=(address,), triton_key_file=key_file)) for address in addresses
    ]
    for gateway in gateways:
        gateway.catalogue = await gateway.reader.read(gateway.pool.replicas)
    yield gateways
    for gateway in gateways:
        await gateway.pool.close()

"""The server of a gateway's process, before it drains."""

import subprocess
import sys

from tests.running import ROOT

SCRIPT = """
import asyncio, gc, weakref
from uvicorn import Config
from gateway.draining import DrainingServer

async def application(scope, receive, send):
    raise RuntimeError

class Cycle:
    pass

async def main():
    config = Config(application, port=0, lifespan="off", log_level="critical")
    config.load()
    server = DrainingServer(config, 0)
    server.lifespan = config.lifespan_class(config)
    cycle = Cycle()
    cycle.itself = cycle
    garbage = weakref.ref(cycle)
    del cycle
    await server.startup()
    print(gc.get_freeze_count(), garbage() is None)
    for listener in server.servers:
        listener.close()

asyncio.run(main())
"""


def test_what_is_loaded_at_the_start_is_not_collected_again_and_no_garbage_is_kept():
    command = [sys.executable, "-c", SCRIPT]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    frozen, is_garbage_gone = result.stdout.split()
    assert int(frozen) > 10_000
    assert is_garbage_gone == "True"

"""Children of a process that speaks gRPC reach the program that they are to run."""

import os
import subprocess
import sys

from tests.running import ROOT

# About one in a hundred was aborted by gRPC between fork and exec: see serving/__init__.py.
FORKS = """
import os
from serving.children import start
import grpc
codes = set()
for _ in range(20):
    channel = grpc.insecure_channel("127.0.0.1:1")
    try:
        channel.unary_unary("/nobody/Listens")(b"", timeout=0.1)
    except grpc.RpcError:
        pass
    codes |= {start(["/bin/true"]).wait() for _ in range(10)}
    channel.close()
print(codes, os.environ["GRPC_ENABLE_FORK_SUPPORT"])
"""


def test_grpc_does_not_touch_a_child_that_is_about_to_run_another_program():
    without = {k: v for k, v in os.environ.items() if k != "GRPC_ENABLE_FORK_SUPPORT"}
    command = [sys.executable, "-c", FORKS]
    run = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=120, env=without
    )
    assert run.stdout == "{0} 0\n", run.stderr

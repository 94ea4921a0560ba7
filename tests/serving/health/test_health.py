"""How a model's dead processes are found, on a process that looks like one of Triton's."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from serving.health import health
from serving.health.health import Health
from serving.triton import stubs
from serving.triton.control import READY


class Control:
    """A Triton that has loaded one instance of version 1 of ``m``."""

    load_timeout_s = 60.0

    def index(self):
        return [SimpleNamespace(name="m", version="1", state=READY)]

    def config(self, model):
        return SimpleNamespace(instance_group=[SimpleNamespace(count=1, gpus=[])])


@pytest.fixture
def process(tmp_path):
    """A child of this process, which is thus the server."""
    file = tmp_path / "m" / "1" / "model.py"
    file.parent.mkdir(parents=True)
    file.write_text("import time\nprint(flush=True)\ntime.sleep(120)\n")
    with subprocess.Popen(
        [stubs.NAME, str(file), "region"], executable=sys.executable, stdout=subprocess.PIPE
    ) as child:
        child.stdout.readline()
        yield child
        child.kill()


def test_a_death_is_seen_at_once_and_all_processes_are_read_seldom(process, monkeypatch):
    monkeypatch.setattr(health, "SCAN_EVERY_S", 600.0)
    scans = []

    def scan(pid):
        scans.append(pid)
        return stubs.live_stubs(pid)

    monkeypatch.setattr(health, "live_stubs", scan)
    watched = Health(Control())
    watched.remember(os.getpid())
    for _ in range(5):
        assert watched.dead_models(os.getpid()) == []
    assert len(scans) == 2  # that of ``remember``, and one since
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it stays as a zombie
    for _ in range(2):
        assert watched.dead_models(os.getpid()) == ["m"]
    # This process may have other stubs, of a server that other tests share.
    assert process.pid not in {stub.pid for stub in watched.processes()}

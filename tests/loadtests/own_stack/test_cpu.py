"""The CPU time of a process tree, by name; which of our processes is which."""

import os
import subprocess
import sys

import pytest

from loadtests.own_stack.cpu import ProcessTree, stack_process, used_between

BUSY = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
started = time.process_time()
while time.process_time() - started < 0.3:
    pass
print("done", flush=True)
sys.stdin.read()
child.communicate(b"\\n")
"""


def test_the_tree_has_the_process_and_its_children_by_name():
    with subprocess.Popen(
        [sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"done\n"
        is_child = "input()"
        tree = ProcessTree(process.pid, lambda line: "child" if is_child in line else "parent")
        used = tree.cpu_s()
        process.communicate(b"")
    assert set(used) == {"parent", "child"}
    assert used["parent"] >= 0.3 - 1 / os.sysconf("SC_CLK_TCK")
    assert tree.cpu_s() == {}  # it has ended


HUNGRY = """
import sys
sys.stdin.readline()
block = bytearray(64 * 2**20)
del block
print("done", flush=True)
sys.stdin.read()
"""


def test_the_peak_of_memory_is_that_since_it_was_reset():
    with subprocess.Popen(
        [sys.executable, "-c", HUNGRY], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        tree = ProcessTree(process.pid, lambda line: "hungry")
        before = tree.peak_mib("hungry")
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"done\n"
        assert tree.peak_mib("hungry") > before + 60
        assert tree.peak_mib("another") == 0
        tree.reset_peaks("hungry")
        assert tree.peak_mib("hungry") < before + 30
        process.communicate(b"")


def test_a_process_that_ended_counts_as_nothing_and_a_new_one_from_its_start():
    before = {"gateway": 2.0, "stub old": 5.0}
    assert used_between(before, {"gateway": 2.5, "stub new": 0.2}) == {
        "gateway": 0.5,
        "stub new": 0.2,
    }


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("/opt/tritonserver/bin/tritonserver --http-port=1", "tritonserver"),
        ("/b/triton_python_backend_stub /r/m/1/model.py shm 1 /b 336 m_a_0_1 ", "stub m_a"),
        ("/venv/bin/python -m gateway", "gateway"),
        ("/venv/bin/python -m tidegate up a b", "up"),
        ("/venv/bin/python -c from_multiprocessing", ""),
        ("", ""),
    ],
)
def test_our_processes_are_known_by_their_command_lines(line, name):
    assert stack_process(line.split(" ")) == name

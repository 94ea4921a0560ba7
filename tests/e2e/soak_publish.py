"""A soak, not a test: publish and roll back under load, with kills at random moments.

    python -m tests.e2e.soak_publish --minutes 30

Exits 1 if a request failed or the repository was ever in neither the old nor the new state.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests.back_to_back import Calls
from tests.running import ROOT, wait_until
from tests.serving.small_pipeline import NAME, stage
from tests.serving.small_server import serving_small_pipeline, under_load

LONGEST_S = 4.0  # about as long as a whole publication takes here
VERSIONS_KEPT = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    dice = random.Random(options.seed)  # noqa: S311 - a repeatable soak
    with (
        tempfile.TemporaryDirectory() as home,
        serving_small_pipeline(Path(home)) as server,
        under_load(server, clients=2, may_fail=True) as calls,
    ):
        end = time.monotonic() + options.minutes * 60
        counts = {"publish": 0, "switch": 0, "killed": 0, "refused": 0}
        while time.monotonic() < end:
            _round(server, dice, counts)
            if sum(counts.values()) % 20 < 2:
                _report(server, calls, counts)
        wait_until(server.control.is_ready, 60, "readiness after the last round")
        _report(server, calls, counts)
    sys.exit(1 if calls.failures else 0)


def _round(server, dice: random.Random, counts: dict[str, int]) -> None:
    repository = server.options.repository.path
    versions = sorted(int(path.name) for path in (repository / NAME).glob("[0-9]*"))
    verb = "publish" if len(versions) < VERSIONS_KEPT or dice.random() < 0.3 else "switch"
    if verb == "publish":
        argument = str(stage(repository, dice.randrange(1, 1000)))
    else:
        argument = str(dice.choice(versions))
    command = [sys.executable, "-m", "tests.serving.killed_publisher", server.options.work_dir]
    process = subprocess.Popen(
        [*command, repository, "-", verb, argument],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    counts[verb] += 1
    try:
        process.wait(dice.uniform(0.8, LONGEST_S) if dice.random() < 0.7 else None)
    except subprocess.TimeoutExpired:
        process.kill()
        counts["killed"] += 1
    _, stderr = process.communicate()
    if process.returncode == 1:
        counts["refused"] += 1
        sys.stderr.write(stderr[-600:])
    if verb == "publish":
        shutil.rmtree(argument)


def _report(server, calls: Calls, counts: dict[str, int]) -> None:
    triton = psutil.Process(server.pid)
    line = {
        **counts,
        "answers": calls.counts.total(),
        "failed": len(calls.failures),
        "active": server.options.repository.active_version(NAME),
        "triton_mib": triton.memory_info().rss // 2**20,
        "stubs": len(triton.children(recursive=True)),
        "shm_files": len(list(Path("/dev/shm").glob("tidegate_*"))),
        "ready": server.control.is_ready(),
    }
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

"""The machine of a measurement: without it a figure means nothing."""

import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def cpu_name(cpuinfo: Path = CPUINFO) -> str:
    """The CPU's name; where the kernel does not say (ARM), the architecture's."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(filter(None, names), "") or platform.processor() or platform.machine()


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those of these packages that are installed, by name."""
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def git_commit(folder: Path, short: bool = False) -> str:
    """The commit of a working tree, with ``+changes`` if tracked files differ from it; '' outside
    git."""
    length = [] if short else ["--abbrev=40"]
    # No tag is called *: the commit itself is described.
    describe = ["describe", "--always", "--exclude=*", "--dirty=+changes", *length]
    try:
        run = subprocess.run(
            ["git", "-C", str(folder), *describe], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.strip() if run.returncode == 0 else ""

"""Is there room for the new versions beside the old ones? Checked before anything is changed."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import psutil

from modelspec.files import size_bytes
from serving.errors import PublishFailed
from serving.publish.plan import PlannedVersion
from serving.triton.stubs import stub_memory_bytes

MIB = 1024 * 1024
DISK_MARGIN_BYTES = 64 * MIB
STUB_BYTES = 170 * MIB  # a Python stub with ONNX Runtime and no model, measured
CGROUP = Path("/sys/fs/cgroup")


def require_disk(folder: Path, needed_bytes: int) -> None:
    """PublishFailed unless ``folder``'s disk has room for that many bytes, and a margin."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes + DISK_MARGIN_BYTES:
        raise PublishFailed(
            f"the disk of {folder} has {_mib(free)} free, and {_mib(needed_bytes)} plus a margin "
            f"of {_mib(DISK_MARGIN_BYTES)} are needed; nothing was published. Make room "
            "(`tidegate prune NAME --keep 2` removes old versions), then run this again"
        )


def require_memory(new: Sequence[PlannedVersion], server_pids: Sequence[int]) -> None:
    """PublishFailed unless memory holds the new versions while the old ones still serve."""
    needed = 0
    for version in new:
        if version.source is None or version.config.HasField("ensemble_scheduling"):
            continue
        for pid in server_pids:
            # As much as the model's processes use now, or, for a model that is not loaded, its
            # files and a stub for each instance.
            if loaded := stub_memory_bytes(pid, version.model):
                # With --model-config-name, Triton reloads the old version when the main config
                # changes.
                try:
                    words = psutil.Process(pid).cmdline()
                except psutil.Error:
                    words = []
                reads_profiles = any(word.startswith("--model-config-name") for word in words)
                needed += loaded * (2 if reads_profiles else 1)
            else:
                instances = sum(group.count or 1 for group in version.config.instance_group) or 1
                needed += instances * (STUB_BYTES + size_bytes(version.source))
    available = available_bytes()
    if needed > available:
        raise PublishFailed(
            f"the new versions need about {_mib(needed)} of memory beside the old ones, and "
            f"{_mib(available)} are available; nothing was published. Stop the stack before you "
            "publish (then old and new are never loaded together), or free memory"
        )


def available_bytes(cgroup: Path = CGROUP) -> int:
    """The memory that this machine, or the container we run in, still has."""
    machine = int(psutil.virtual_memory().available)
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):  # no cgroup, or "max": no limit
        return machine
    return min(machine, max(0, limit - used))


def _mib(amount: int) -> str:
    return f"{amount / MIB:,.0f} MiB"

"""The phases of a publication, in order. It may be interrupted at each of them, and the next
publisher (or ``tidegate up``) takes the repository to the old state or to the new one."""

from collections.abc import Callable
from enum import StrEnum


class PublishPhase(StrEnum):
    LOCKED = "begun; no other publisher changes the repository meanwhile"
    CHECKED = "every file of the version matches its manifest"
    JOURNALLED = "the planned changes are in the journal"
    INSTALLED = "the new version folders are in the repository"
    POLICIES_WIDENED = "the old and the new versions of its members may be served together"
    TRIED = "the candidate pipeline is in the repository"
    LOADED = "the candidate is loaded beside the active version"
    PROBED = "the candidate answers its golden sample"
    CLEARED = "the candidate is removed again"
    PINNED = "its config pins the new versions: they are the active ones"
    SERVED = "the servers serve the new versions"
    RETIRED = "the versions of its members that it no longer needs are not served any more"
    DONE = "done: an interruption can no longer undo it"


# Called at each phase with the model's name: prints progress, or lets a test kill the process.
Progress = Callable[[PublishPhase, str], None]


def no_report(phase: PublishPhase, model: str) -> None:
    """The default ``Progress``: does nothing."""

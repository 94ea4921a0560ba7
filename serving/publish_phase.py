"""The steps of a publication, in order. At each of them it may be cut off, and the next publisher
(or ``tidegate up``) brings the repository to the old state or to the new one."""

from collections.abc import Callable
from enum import StrEnum


class PublishPhase(StrEnum):
    LOCKED = "nobody else publishes now"
    CHECKED = "every file of the version is what its manifest says"
    JOURNALLED = "what is about to appear is written down"
    INSTALLED = "the new version folders lie in the repository"
    LISTED = "the members list their old and their new versions"
    TRIED = "the candidate pipeline lies in the repository"
    LOADED = "the candidate is loaded beside what serves"
    PROBED = "the candidate answers its golden sample"
    CLEARED = "the candidate is gone again"
    PINNED = "the pipeline's config pins the new versions"
    SERVED = "the servers serve them"
    RETIRED = "the members list the pinned versions only"
    DONE = "the journal is closed"


# Told at each step, with what it is about: a progress line, or a test's moment for a kill.
Tell = Callable[[PublishPhase, str], None]


def say_nothing(step: PublishPhase, what: str) -> None:
    """The Tell of a caller that does not listen."""

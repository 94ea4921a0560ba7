"""How long a request will wait for its first token, and which ones wait for too long.

The driver says after each step how long it took. What a request still needs is counted in steps:
one for each token that it will probably generate, and the reading of its prompt. Nothing is
expected before a step was measured.
"""

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

MEASURED = 16  # of the latest steps, the median: one that was held up by the machine says nothing
# Answers are shorter than they may be. Until it is known by how much, by half.
FIRST_SHARE, FIRST_TOKENS = 0.5, 1024
REMEMBERED_TOKENS = 2**15


class Pace:
    """How fast the engine is, and how much of what requests may generate they do generate."""

    def __init__(self) -> None:
        self._steps: deque[float] = deque(maxlen=MEASURED)
        self._prompt_tokens: deque[float] = deque(maxlen=MEASURED)
        self._allowed, self._made = float(FIRST_TOKENS), FIRST_SHARE * FIRST_TOKENS

    def step_took(self, seconds: float, prompt_tokens: int) -> None:
        """One step, which read so many tokens of prompts, and generated beside that."""
        if not prompt_tokens:
            self._steps.append(seconds)
        elif self._steps:
            self._prompt_tokens.append(max(0.0, seconds - self.step_s) / prompt_tokens)

    def ended(self, made: int, allowed: int) -> None:
        """A sequence that was allowed to generate so many tokens ended with ``made``."""
        self._made, self._allowed = self._made + made, self._allowed + allowed
        if self._allowed > REMEMBERED_TOKENS:
            self._made, self._allowed = self._made / 2, self._allowed / 2

    @property
    def is_known(self) -> bool:
        return bool(self._steps)

    @property
    def step_s(self) -> float:
        """Of a step in which every running sequence generates a token and no prompt is read."""
        return statistics.median(self._steps)

    @property
    def prompt_token_s(self) -> float:
        """What one token of a prompt adds to a step."""
        return statistics.median(self._prompt_tokens) if self._prompt_tokens else 0.0

    @property
    def share(self) -> float:
        """Of the tokens that a sequence may generate."""
        return self._made / self._allowed


@dataclass(frozen=True)
class Claim:
    """What one request, running or waiting, takes and still needs."""

    reserved: int  # tokens of KV cache
    sequences: int
    tokens: int  # that each sequence may still generate
    prompt_tokens: int  # that have not been read
    waited_s: float = 0.0


def first_token_waits(
    pace: Pace,
    running: Sequence[Claim],
    waiting: Sequence[Claim],
    tokens: int,
    places: int,
    most_s: float,
) -> list[float]:
    """Seconds from now until each that waits has its first token. They begin in order, as room in
    the KV cache (``tokens``) and ``places`` for sequences come free. One that will have waited for
    more than ``most_s`` takes no room from those behind it: it is not going to run."""
    if not pace.is_known:
        return [0.0] * len(waiting)
    step_s, token_s, share = pace.step_s, pace.prompt_token_s, pace.share
    begin_s = read_s = 0.0  # when the next one begins, and when all prompts before it are read
    ends: list[tuple[float, int, int]] = []
    for claim in running:
        read_s += claim.prompt_tokens * token_s
        tokens, places = tokens - claim.reserved, places - claim.sequences
        ends.append((read_s + claim.tokens * share * step_s, claim.reserved, claim.sequences))
    heapify(ends)
    waits = []
    for claim in waiting:
        while ends and (claim.reserved > tokens or claim.sequences > places):
            end_s, reserved, sequences = heappop(ends)
            begin_s = max(begin_s, end_s)
            tokens, places = tokens + reserved, places + sequences
        own_read_s = max(begin_s, read_s) + claim.prompt_tokens * token_s
        first_s = own_read_s + step_s
        waits.append(first_s)
        if claim.waited_s + first_s > most_s:
            continue
        read_s = own_read_s
        tokens, places = tokens - claim.reserved, places - claim.sequences
        end_s = first_s + claim.tokens * share * step_s
        heappush(ends, (end_s, claim.reserved, claim.sequences))
    return waits

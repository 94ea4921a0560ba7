"""How many texts a language model continues at a time, and whose is the next.

Its engine (vLLM, or our own) has a queue of its own, first come, first served, of which Triton
measures nothing: when a tenant floods it, everybody else waits for its long texts. So they wait
here, and tenants take turns (``admission``), by the tokens of their texts.

An engine says in its model's config how many sequences it generates at a time, and how many tokens
its KV cache holds (``EngineCapacity``); no more than that is sent. If there are tenants, a quarter
of it is kept for one that is next and has nothing under way: a place comes free only when a text
ends, which takes seconds, and who asks for a single text should not wait for those of a flood.

What the engine has no room for gets no first token, since the tokens of a text are only estimated,
and an engine need not say anything about itself; and while it reads many prompts, others wait
behind them. So a tenant may have only so many texts without a first token: more, step by step,
while these come soon, and half as many when one is late.
"""

import time
from collections.abc import Callable

from gateway.models.catalogue import EngineCapacity
from gateway.upstream.admission import Tenant, TurnQueue, Waiter, moved

DEFAULT_SEQUENCES = 64  # of an engine that does not say how many it generates at a time
KEPT_SHARE = 1 / 4  # of the capacity, for tenants that have nothing under way
LATE_S = 0.5  # a first token that comes later is late
# How many streams of a tenant may be without their first token: at first, and at least.
FIRST_UNBEGUN, LEAST_UNBEGUN = 8.0, 2.0
LARGEST_SHARE = 1 / 4  # of the tokens, what one text counts for at most: it need not run alone
FIRST_TOKENS = 256  # that a text is thought to take before there was one


class TextQueue(TurnQueue):
    """The texts for one language model: those that it continues, and those that wait."""

    def __init__(
        self,
        capacity: EngineCapacity,
        share: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """See ``resize``."""
        super().__init__(clock)
        # Of the texts under way, about: a text with ``n`` is so many sequences.
        self.tokens = self.sequences = 0
        self.is_shared = False  # there are tenants
        self._text_tokens = float(FIRST_TOKENS)  # of a text, a moving average
        self.resize(capacity, share)

    def resize(self, capacity: EngineCapacity, share: float) -> None:
        """``capacity`` is that of one server, ``share`` this process's part of all of them: the
        number of servers, divided by that of the processes that send to them."""
        self.most_texts = max(1, int((capacity.sequences or DEFAULT_SEQUENCES) * share))
        self.most_tokens = int(capacity.tokens * share)  # 0: not known
        self.fill()

    @property
    def most_at_once(self) -> int:
        return self.most_texts

    def leave(self, waiter: Waiter | None = None) -> None:
        assert waiter is not None  # noqa: S101 - every text has waited, if only for a moment
        self._left()
        self.lend(waiter, 1)

    def lend(self, waiter: Waiter | None, count: int) -> None:
        assert waiter is not None  # noqa: S101
        waiter.tenant.unbegun.pop(waiter, None)
        waiter.tenant.under_way -= count
        self.tokens -= count * waiter.tokens
        self.sequences -= count * waiter.sequences
        super().lend(waiter, count)

    def has_responded(self, waiter: Waiter) -> None:
        tenant = waiter.tenant
        if waiter not in tenant.unbegun:
            return
        del tenant.unbegun[waiter]
        if self._is_late(waiter):
            tenant.most_unbegun = max(LEAST_UNBEGUN, tenant.most_unbegun / 2)
        else:
            tenant.most_unbegun += 1 / tenant.most_unbegun
        self.fill()

    def _next(self) -> Waiter | None:
        due = [
            tenant
            for tenant in self._tenants.values()
            if tenant.waiting and not self._is_held_back(tenant)
        ]
        if not due:
            return None
        tenant = min(due, key=lambda tenant: tenant.served)
        return tenant.waiting[0] if self._has_room(tenant) else None

    def _has_room(self, tenant: Tenant) -> bool:
        """Whether the model can take the first text of this tenant that waits."""
        if self.in_flight <= 0:
            return True
        part = 1 - KEPT_SHARE if self.is_shared and tenant.under_way else 1.0
        waiter = tenant.waiting[0]
        places = min(waiter.sequences, max(1, int(self.most_texts * part)))
        if self.sequences + places > max(1, self.most_texts * part):
            return False
        tokens = self.tokens + self._size(waiter)
        return not self.most_tokens or tokens <= self.most_tokens * part

    def _is_held_back(self, tenant: Tenant) -> bool:
        """Whether too many of its streams are without a first token."""
        if not self.is_shared or not tenant.unbegun:
            return False
        is_late = self._is_late(next(iter(tenant.unbegun)))
        return len(tenant.unbegun) >= (LEAST_UNBEGUN if is_late else tenant.most_unbegun)

    def _is_late(self, waiter: Waiter) -> bool:
        """Whether its first token is, or was if it came just now."""
        return self._time() - waiter.granted_at > LATE_S

    def _size(self, waiter: Waiter) -> int:
        """The tokens that the text counts for."""
        if not self.most_tokens:
            return waiter.tokens
        share = min(1.0, LARGEST_SHARE * waiter.sequences)
        return min(waiter.tokens, int(self.most_tokens * share))

    def _granted(self, waiter: Waiter) -> None:
        tenant = waiter.tenant
        waiter.tokens, waiter.granted_at = self._size(waiter), self._time()
        # What it had no turn for while it was held back is not saved up.
        tenant.served = max(tenant.served, self._clock) + waiter.tokens / tenant.weight
        tenant.under_way += 1
        if waiter.is_stream:
            tenant.most_unbegun = tenant.most_unbegun or FIRST_UNBEGUN
            tenant.unbegun[waiter] = None
        self.tokens += waiter.tokens
        waiter.sequences = min(waiter.sequences, self.most_texts)
        self.sequences += waiter.sequences
        self._text_tokens = moved(self._text_tokens, waiter.tokens)

    def _charge(self, tenant: Tenant) -> float:
        return self._text_tokens / tenant.weight

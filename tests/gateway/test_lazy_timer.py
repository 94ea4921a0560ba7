"""A LazyTimer fires once, when its last time has come and no earlier."""

import asyncio

from gateway.lazy_timer import LazyTimer


class Loop(asyncio.SelectorEventLoop):
    """A loop whose clock is set by hand."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def at(self, now: float) -> None:
        self.now = now
        self.call_soon(self.stop)
        self.run_forever()


def test_only_the_last_time_counts():
    loop, fired = Loop(), []
    timer = LazyTimer(loop, lambda: fired.append(loop.now))
    try:
        timer.set(10)
        timer.set(20)  # later: the loop's timer stays
        loop.at(11)
        assert fired == []
        timer.set(15)  # earlier
        loop.at(16)
        loop.at(30)
        assert fired == [16]
        timer.set(40)
        timer.clear()
        loop.at(50)
        timer.set(60)
        loop.at(61)
        assert fired == [16, 61]
        timer.set(70)
        timer.close()
        loop.at(80)
        assert fired == [16, 61]
    finally:
        loop.close()

"""A clock that a test sets, for what takes a function such as ``time.monotonic``."""


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now

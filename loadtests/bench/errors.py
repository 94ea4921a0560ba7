"""What can stop a benchmark.

BenchError             its message says what failed and what to do; a missed floor is no error
`- NothingAnswered     a pass was too short for the first answer
"""


class BenchError(RuntimeError):
    """Nothing was measured, or the measurement is meaningless."""


class NothingAnswered(BenchError):
    pass

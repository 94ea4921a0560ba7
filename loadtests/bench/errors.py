"""What can stop a benchmark.

BenchError    its message says what failed and what to do; a missed floor is not an error
"""


class BenchError(RuntimeError):
    """Nothing was measured, or the measurement is meaningless."""

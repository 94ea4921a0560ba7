"""What can stop a benchmark.

BenchError    the message says what failed and what to do; a missed floor is not one
"""


class BenchError(RuntimeError):
    """Nothing was measured, or what was measured means nothing."""

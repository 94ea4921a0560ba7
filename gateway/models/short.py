"""What a model says of its short requests."""

from typing import NamedTuple


class Short(NamedTuple):
    """``most_bytes``: of the tensors of a short request together; 0: none is short. ``most_rows``:
    of short requests that are sent as one; 0: each is sent alone. ``at_a_time``: so many are under
    way on one server before others wait for company."""

    most_bytes: int = 0
    most_rows: int = 0
    at_a_time: int = 1

    @property
    def alone(self) -> "Short":
        """The same, but for a request that is sent alone."""
        return self._replace(most_rows=0)


NOT_SHORT = Short()

"""A served pipeline behind a gRPC client whose deadline follows how fast the machine is.

A constant deadline is wrong twice: on a busy machine an honest pipeline runs into it, and on a
quiet one a pipeline that hangs makes the proof wait for all of it.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from tritonclient import grpc as triton

FIRST_S = 300.0  # nothing is known yet: Triton has just loaded the model, and warms it up
LEAST_S, MOST_S = 60.0, 600.0
# A request may take this many times as long as the slowest so far, for each of its rows: the
# machine may become busy after the first.
FACTOR = 20.0


class Deadline:
    """The seconds that a request may take, by the slowest that each model has answered so far."""

    def __init__(self) -> None:
        self._slowest: dict[str, float] = {}

    def seconds(self, model: str, rows: int = 1) -> float:
        slowest = self._slowest.get(model)
        if slowest is None:
            return FIRST_S
        return min(MOST_S, max(LEAST_S, FACTOR * slowest * max(1, rows)))

    def took(self, model: str, seconds: float) -> None:
        """A request was answered after so many seconds."""
        self._slowest[model] = max(seconds, self._slowest.get(model, 0.0))


class ServedClient:
    """A client of the Triton at the gRPC ``address``, for any number of threads; a context
    manager."""

    def __init__(self, address: str, now: Callable[[], float] = time.monotonic) -> None:
        self._client, self._now, self._deadline = (
            triton.InferenceServerClient(address),
            now,
            Deadline(),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._client.close()

    def config(self, model: str) -> Any:
        """The model's config, a ``ModelConfig`` message of Triton's."""
        return self._client.get_model_config(model).config

    def infer(
        self,
        model: str,
        tensors: Sequence[Any],
        parameters: Mapping[str, Any] | None = None,
    ) -> Any:
        """The ``InferResult`` of one request; InferenceServerException when there is none, or none
        in time."""
        started = self._now()
        result = self._client.infer(
            model,
            list(tensors),
            parameters=dict(parameters) if parameters else None,
            client_timeout=self._deadline.seconds(model, tensors[0].shape()[0]),
        )
        self._deadline.took(model, self._now() - started)
        return result

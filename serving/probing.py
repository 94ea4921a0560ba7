"""Golden samples asked in threads of their own: a model that is late holds up nothing else."""

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from serving.errors import ServingError
from serving.golden import NO_ANSWER


@dataclass
class _Asked:
    """A sample that was asked; ``fault`` is None until there is a verdict."""

    since: float
    fault: str | None = None
    took_s: float = 0.0


class Probing:
    """At most one question to each model is under way."""

    def __init__(self, ask: Callable[[str], str]) -> None:
        """``ask(model)`` returns '' or what is wrong; it is called in the thread."""
        self._ask = ask
        self._asked: dict[str, _Asked] = {}

    def begin(self, models: Iterable[str]) -> None:
        """Ask each of these that is not being asked."""
        for model in models:
            if model not in self._asked:
                asked = self._asked[model] = _Asked(time.monotonic())
                name = f"probe-{model}"[:15]
                threading.Thread(
                    target=self._run, args=(model, asked), name=name, daemon=True
                ).start()

    def take(self) -> dict[str, tuple[str, float]]:
        """The verdicts that have come since the last call, each with the seconds that it took."""
        found = {
            model: (asked.fault, asked.took_s)
            for model, asked in self._asked.items()
            if asked.fault is not None
        }
        for model in found:
            del self._asked[model]
        return found

    def late(self, seconds: float) -> list[str]:
        """The models that were asked more than so long ago and have not answered."""
        until = time.monotonic() - seconds
        asked = self._asked.items()
        return [model for model, each in asked if each.fault is None and each.since <= until]

    def forget(self, model: str) -> None:
        """What it answers to a question that is under way is no longer of interest."""
        self._asked.pop(model, None)

    def _run(self, model: str, asked: _Asked) -> None:
        try:
            fault = self._ask(model)
        except ServingError as error:
            fault = f"{NO_ANSWER} ({error})"
        except Exception as error:  # a verdict has to come: nobody else asks meanwhile
            fault = f"cannot be asked its golden sample ({type(error).__name__}: {error})"
        asked.took_s = time.monotonic() - asked.since
        asked.fault = fault

"""Golden-sample probes, each in its own thread: a model that is late holds up nothing else."""

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from serving.errors import ServingError
from serving.triton.golden import NO_RESPONSE


@dataclass
class _Probe:
    """One probe; ``fault`` is None until there is a verdict."""

    since: float
    fault: str | None = None
    took_s: float = 0.0


class Probing:
    """At most one probe per model is under way."""

    def __init__(self, ask: Callable[[str], str]) -> None:
        """``ask(model)`` returns '' or what is wrong; it is called in the thread."""
        self._ask = ask
        self._probes: dict[str, _Probe] = {}

    def begin(self, models: Iterable[str]) -> None:
        """Probe each of these models that has no probe under way."""
        for model in models:
            if model not in self._probes:
                probe = self._probes[model] = _Probe(time.monotonic())
                name = f"probe-{model}"[:15]
                threading.Thread(
                    target=self._run, args=(model, probe), name=name, daemon=True
                ).start()

    def take(self) -> dict[str, tuple[str, float]]:
        """The verdicts since the last call, each with the seconds that the probe took."""
        verdicts = {
            model: (probe.fault, probe.took_s)
            for model, probe in self._probes.items()
            if probe.fault is not None
        }
        for model in verdicts:
            del self._probes[model]
        return verdicts

    def late(self, seconds: float) -> list[str]:
        """The models that have not answered a probe that began at least ``seconds`` ago."""
        latest = time.monotonic() - seconds
        probes = self._probes.items()
        return [model for model, probe in probes if probe.fault is None and probe.since <= latest]

    def forget(self, model: str) -> None:
        """Discard the model's probe that is under way."""
        self._probes.pop(model, None)

    def _run(self, model: str, probe: _Probe) -> None:
        try:
            fault = self._ask(model)
        except ServingError as error:
            fault = f"{NO_RESPONSE} ({error})"
        except Exception as error:  # there must be a verdict: until then no other probe begins
            fault = f"cannot be probed with its golden sample ({type(error).__name__}: {error})"
        probe.took_s = time.monotonic() - probe.since
        probe.fault = fault

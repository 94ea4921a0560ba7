"""The progress of a build, in one line. Independent of TensorRT: ``monitor`` forwards its reports.

TensorRT reports nested phases of a known number of steps. The share done is that of the outermost
phase, plus the share of the phase inside its current step, and so on.
"""

import threading
from dataclasses import dataclass
from typing import TextIO

WIDTH = 78


@dataclass
class _Phase:
    name: str
    parent: str | None
    steps: int
    done: int = 0


class ProgressLine:
    """``stop`` is set from another thread; TensorRT then ends the build after the current step.

    On a terminal one line is overwritten; elsewhere there is a line for each tenth.
    """

    def __init__(self, out: TextIO, stop: threading.Event) -> None:
        self._out, self._stop = out, stop
        self._lock = threading.Lock()  # TensorRT may report from several threads
        self._phases: dict[str, _Phase] = {}
        self._tenth = -1

    def started(self, name: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._phases[name] = _Phase(name, parent, max(1, steps))
            self._show()

    def stepped(self, name: str, step: int) -> bool:
        """Whether to continue."""
        with self._lock:
            if name in self._phases:
                self._phases[name].done = step + 1
                self._show()
        return not self._stop.is_set()

    def finished(self, name: str) -> None:
        with self._lock:
            self._phases.pop(name, None)
            self._show()

    def close(self) -> None:
        """End the line, so that the next output starts a new one."""
        if self._out.isatty() and self._tenth >= 0:
            self._out.write("\n")
            self._out.flush()

    def share(self) -> float:
        """The share that is done, 0 to 1."""
        share, weight, name = 0.0, 1.0, self._inside(None)
        while name:
            phase = self._phases[name]
            share += weight * min(1.0, phase.done / phase.steps)
            weight /= phase.steps
            name = self._inside(name)
        return min(1.0, share)

    def _inside(self, parent: str | None) -> str | None:
        """The newest phase with this parent; a parent that was never reported counts as None."""
        names = [
            phase.name
            for phase in self._phases.values()
            if (phase.parent if phase.parent in self._phases else None) == parent
        ]
        return names[-1] if names else None

    def _show(self) -> None:
        share, names = self.share(), " > ".join(self._phases)
        line = f"building the engine: {share:4.0%} {names}"
        if self._out.isatty():
            self._out.write(f"\r{line[:WIDTH]:<{WIDTH}}")
        elif int(share * 10) > self._tenth:
            self._out.write(f"{line[:WIDTH]}\n")
        self._tenth = max(self._tenth, int(share * 10))
        self._out.flush()

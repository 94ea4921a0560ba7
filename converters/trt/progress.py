"""How far a build is, in one line. Knows no TensorRT: ``monitor`` passes on what that says.

TensorRT reports nested phases of a known number of steps. The share that is done is that of the
outermost, moved on by the share of the one inside it, and so on.
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
    """``stop`` is set from another thread; TensorRT then ends the build after its present step.

    On a terminal one line is written over and over; elsewhere a line for each tenth.
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
        """Whether to go on."""
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
        """End the line, so that what comes next begins its own."""
        if self._out.isatty() and self._tenth >= 0:
            self._out.write("\n")
            self._out.flush()

    def share(self) -> float:
        """How much is done, 0 to 1."""
        share, worth, name = 0.0, 1.0, self._inside(None)
        while name:
            phase = self._phases[name]
            share += worth * min(1.0, phase.done / phase.steps)
            worth /= phase.steps
            name = self._inside(name)
        return min(1.0, share)

    def _inside(self, parent: str | None) -> str | None:
        """The newest phase whose parent this is; a parent that was never told of counts as none."""
        names = [
            each.name
            for each in self._phases.values()
            if (each.parent if each.parent in self._phases else None) == parent
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

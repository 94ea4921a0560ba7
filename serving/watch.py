"""Watch one Triton and heal it: a server that died is started again, a dead stub is revived."""

import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from modelspec.layout import version_folders
from serving.errors import ServingError
from serving.launch import TritonServer
from serving.stubs import Stub, live_stubs

log = logging.getLogger("serving")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0


class Watcher:
    """Call ``check`` often, from the thread that started the server.

    ``models`` are those that are loaded by name; what they are made of comes with them.
    """

    def __init__(
        self, server: TritonServer, models: Sequence[str], tell: Callable[[str], None]
    ) -> None:
        self._server, self._models, self._tell = server, models, tell
        self._stubs = self._live()
        self._pause_s, self._not_before = FIRST_PAUSE_S, 0.0

    def check(self) -> None:
        """Heal what has died since the last call; what fails is tried again after a pause."""
        if time.monotonic() < self._not_before:
            return
        try:
            healed = self._heal()
        except ServingError as error:
            self._not_before = time.monotonic() + self._pause_s
            self._tell(f"not healed yet, trying again in {self._pause_s:g} s: {error}")
            self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)
            return
        if healed:
            self._tell(healed)
            self._stubs = self._live()
        self._pause_s = FIRST_PAUSE_S

    def _heal(self) -> str:
        """What was healed, or '' when all is well."""
        if not self._server.is_alive():
            self._tell("Triton ended by itself; starting it again")
            self._restart()
            return "Triton is serving again"
        dead = sorted({stub.model for stub in self._stubs - self._live()})
        for model in dead:
            self._tell(f"a process of model {model} died; reviving it")
            self._revive(model)
        return f"revived {', '.join(dead)}" if dead else ""

    def _restart(self) -> None:
        self._server.stop()
        self._server.start()
        for model in self._models:
            self._server.control.load(model)

    def _revive(self, model: str) -> None:
        """Loading brings a dead stub back only if a file of its version has changed (2.51)."""
        folder = self._server.options.repository / model
        for version in version_folders(folder):
            _touch_one(folder / str(version))
        self._server.control.load(model)

    def _live(self) -> set[Stub]:
        return live_stubs(self._server.pid) if self._server.pid else set()


def _touch_one(version_folder: Path) -> None:
    # Preferably not a .py: its compiled twin would then be written anew, which is one more change.
    files = [path for path in version_folder.iterdir() if path.is_file()]
    for path in sorted(files, key=lambda path: path.suffix == ".py")[:1]:
        os.utime(path)

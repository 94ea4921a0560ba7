"""The folders and files of the command line.

Everything is relative to the home folder: ``TIDEGATE_HOME``, else the current folder.
"""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Paths:
    """The home folder and what Tidegate keeps in it."""

    home: Path

    @classmethod
    def current(cls) -> "Paths":
        return cls(Path(os.environ.get("TIDEGATE_HOME", ".")).resolve())

    @property
    def repository(self) -> Path:
        return Path(os.environ.get("TIDEGATE_REPOSITORY", self.home / "model_repository")).resolve()

    @property
    def state(self) -> Path:
        return self.home / ".tidegate"

    @property
    def keys(self) -> Path:
        return self.state / "keys.toml"

    @property
    def pepper(self) -> Path:
        return self.state / "pepper"

    @property
    def policy(self) -> Path:
        return self.state / "gateway.toml"

    @property
    def dev_key(self) -> Path:
        return self.state / "dev.key"

    @property
    def triton_key(self) -> Path:
        return self.state / "triton.key"

    def shown(self, path: Path) -> str:
        """The path as a user would write it from the home folder."""
        return str(path.relative_to(self.home)) if path.is_relative_to(self.home) else str(path)

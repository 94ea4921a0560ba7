"""What a publisher is about to do, written down first: after a kill -9 the next one reads it.

The journal says how to undo it (the old configs, the new folders). The pipeline's config says
whether to undo or to finish: the version that it serves is the state of the repository.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from modelspec.files import atomic_write
from modelspec.layout import CONFIG_FILE, staging_folder


@dataclass(frozen=True)
class Journal:
    """``new`` holds the (model, version) folders to be added; ``configs`` the config texts before,
    None for a model without a folder and "" for one without a config; ``profiles`` the texts of the
    config profiles in their ``configs/``, by path."""

    pipeline: str
    before: int
    after: int
    new: tuple[tuple[str, int], ...]
    configs: Mapping[str, str | None]
    profiles: Mapping[str, str] = field(default_factory=dict)

    @property
    def members(self) -> list[str]:
        return [model for model in self.configs if model != self.pipeline]

    def write(self, repository: Path) -> None:
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False)
        atomic_write(_path(repository, self.pipeline), text)

    def close(self, repository: Path) -> None:
        _path(repository, self.pipeline).unlink(missing_ok=True)


def open_journals(repository: Path) -> list[Journal]:
    """The journals of interrupted publishers; those that cannot be read are left out (see
    ``broken_journals``)."""
    journals = [_read(path) for path in _paths(repository)]
    return [journal for journal in journals if isinstance(journal, Journal)]


def broken_journals(repository: Path) -> list[tuple[Path, str]]:
    """The journals that cannot be read, each with the reason."""
    journals = [(path, _read(path)) for path in _paths(repository)]
    return [(path, fault) for path, fault in journals if isinstance(fault, str)]


def configs_now(repository: Path, models: Iterable[str]) -> dict[str, str | None]:
    return {model: _config_now(repository / model) for model in models}


def _config_now(folder: Path) -> str | None:
    if not folder.is_dir():
        return None
    path = folder / CONFIG_FILE
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _read(path: Path) -> Journal | str:
    """The journal, or why it cannot be read."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        new = tuple((str(model), int(version)) for model, version in fields.pop("new"))
        journal = Journal(**fields, new=new)
        dict(journal.configs), dict(journal.profiles)
    except OSError as error:
        return error.strerror or str(error)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return "it is not a journal"
    return journal


def _paths(repository: Path) -> list[Path]:
    return sorted(staging_folder(repository).glob("journal-*.json"))


def _path(repository: Path, pipeline: str) -> Path:
    return staging_folder(repository) / f"journal-{pipeline}.json"

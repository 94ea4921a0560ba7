"""What a publisher is about to do, written down first: after a kill -9 the next one reads it.

The journal says how to undo it (the old configs, the new folders). The pipeline's config says
whether to undo or to finish: the version that it serves is the state of the repository.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from modelspec.files import atomic_write
from serving.repository.model_repository import ModelRepository


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

    @classmethod
    def begin(
        cls,
        repository: ModelRepository,
        pipeline: str,
        after: int,
        members: Iterable[str],
        new: Sequence[tuple[str, int]] = (),
    ) -> "Journal":
        """Write down how the pipeline, the members that it is to have and those that it has now
        are, before it goes to version ``after`` and the ``new`` folders are added."""
        before = repository.active_version(pipeline)
        now = repository.pinned_members(pipeline) if before else {}
        models = [*dict.fromkeys([*now, *members]), pipeline]
        journal = cls(
            pipeline=pipeline,
            before=before,
            after=after,
            new=tuple(new),
            configs=repository.config_texts(models),
            profiles=repository.profile_texts(models),
        )
        text = json.dumps(asdict(journal), indent=1, ensure_ascii=False)
        atomic_write(_path(repository, pipeline), text)
        return journal

    def close(self, repository: ModelRepository) -> None:
        _path(repository, self.pipeline).unlink(missing_ok=True)


def journals(repository: ModelRepository) -> tuple[list[Journal], list[tuple[Path, str]]]:
    """The journals of interrupted publishers, and those that cannot be read, each with the
    reason."""
    open_journals, broken = [], []
    for path in sorted(repository.staging.glob("journal-*.json")):
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            new = tuple((str(model), int(version)) for model, version in fields.pop("new"))
            journal = Journal(**fields, new=new)
            dict(journal.configs), dict(journal.profiles)
            open_journals.append(journal)
        except OSError as error:
            broken.append((path, error.strerror or str(error)))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            broken.append((path, "it is not a journal"))
    return open_journals, broken


def _path(repository: ModelRepository, pipeline: str) -> Path:
    return repository.staging / f"journal-{pipeline}.json"

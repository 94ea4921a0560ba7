"""Train one of the worked case's models, and publish it like any other."""

import importlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from tidegate.app.convert import ConvertOptions, ConvertResult
from tidegate.app.convert import run as convert
from tidegate.app.paths import Paths
from tidegate.app.progress import Progress

if TYPE_CHECKING:
    from training.recipe import Metric

# Pipeline -> the recipe's module: ``TASK``, and ``train(folder, seed, report) -> metrics``.
RECIPES: Mapping[str, str] = MappingProxyType(
    {
        "topic_classification": "training.topics",
        "sentiment": "training.sentiment",
        "entity_recognition": "training.entities",
        "multilingual_embedding": "training.multilingual_embedding",
    }
)
# In a trained folder: texts of its language to prove it on, one a line; without it, English ones.
SAMPLES = "samples.txt"


@dataclass(frozen=True)
class TrainResult:
    name: str
    folder: Path
    metrics: Sequence["Metric"]
    converted: ConvertResult | None  # None if it was only trained

    def lines(self, paths: Paths) -> list[str]:
        measured = (f"{metric.name} {metric.value:.3f} on {metric.data}" for metric in self.metrics)
        lines = [f"{self.name}: {line}" for line in measured]
        if self.converted is None:
            return [*lines, f"{self.name}: the model is in {paths.shown(self.folder)}/"]
        return [*lines, *self.converted.lines(paths)]

    def as_dict(self, paths: Paths) -> dict[str, object]:
        """The result in plain JSON types."""
        return {
            "pipeline": self.name,
            "folder": str(self.folder),
            "metrics": [asdict(metric) for metric in self.metrics],
            "published": self.converted.as_dict(paths) if self.converted else None,
        }


def run(
    name: str, seed: int, paths: Paths, report: Progress, *, publish: bool = True
) -> TrainResult:
    """Train the model into ``.tidegate/trained/NAME``, replacing what was trained before; convert,
    prove and publish it as the next version. Raises TrainingError, and what ``convert`` raises."""
    from converters.offline import go_offline

    go_offline()  # and transformers does not report that a classifier's head is new
    recipe = importlib.import_module(RECIPES[name])
    train = cast("Callable[[Path, int, Progress], Sequence[Metric]]", recipe.train)
    folder = paths.state / "trained" / name
    was_trained = folder.exists()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{name}.") as scratch:
        trained = Path(scratch) / name
        trained.mkdir()
        metrics = train(trained, seed, lambda line: report(f"{name}: {line}"))
        if was_trained:
            folder.replace(Path(scratch) / "before")
        trained.replace(folder)
    if not publish:
        return TrainResult(name, folder, metrics, None)
    # What has this name was trained here: another version of it is no other model.
    samples = folder / SAMPLES
    options = ConvertOptions(
        str(folder),
        task=recipe.TASK,
        name=name,
        samples=samples if samples.is_file() else None,
        force=was_trained,
    )
    return TrainResult(name, folder, metrics, convert(options, paths, report))

"""What every recipe has in common: what it is given, what it returns, and what it writes."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from modelspec.packages import package_folder

# Fixed: with another number, sums are rounded otherwise and training goes another way. Where the
# processor is shared, two threads wait for each other, and use up to several times its time.
THREADS = 1
Progress = Callable[[str], None]


class TrainingError(Exception):
    """A recipe cannot run; the message says what to do."""


@dataclass(frozen=True)
class Metric:
    """``value`` from 0 to 1, measured on ``data``."""

    name: str
    value: float
    data: str


@dataclass(frozen=True)
class ModelCard:
    """What README.md says at its top: Hugging Face's fields, and what the model is for."""

    purpose: str
    limits: str
    license: str
    language: Sequence[str]
    datasets: Sequence[str]
    base_model: str

    def save(self, folder: Path, name: str, metrics: Sequence[Metric]) -> None:
        """Write README.md into the model's folder."""
        import yaml

        results = [
            {
                "dataset": {"name": metric.data},
                "metrics": [{"name": metric.name, "value": metric.value}],
            }
            for metric in metrics
        ]
        fields = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }
        fields["model-index"] = [{"name": name, "results": results}]
        top = yaml.safe_dump(fields, allow_unicode=True, sort_keys=False)
        text = f"---\n{top}---\n\n# {name}\n\n{self.purpose}\n\n{self.limits}\n"
        (folder / "README.md").write_text(text, encoding="utf-8")


def required_folder(package: str) -> Path:
    """The folder of an installed package; TrainingError says how to install it."""
    folder = package_folder(package)
    if folder is None:
        raise TrainingError(
            f"the package {package.replace('_', '-')} is not installed: run `make up` once, or "
            "pip install 'tidegate[convert]'"
        )
    return folder


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """What torch computes within is the same for the same seed, on one kind of processor."""
    import torch

    previous, was_deterministic = (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(THREADS)
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.set_num_threads(previous)
            torch.use_deterministic_algorithms(was_deterministic)


def macro_f1(actual: Sequence[str], predicted: Sequence[str]) -> float:
    """The mean of the labels' F1."""
    labels = sorted({*actual, *predicted})
    pairs = list(zip(actual, predicted, strict=True))
    scores = []
    for label in labels:
        hits = sum(a == p == label for a, p in pairs)
        misses = sum(a != p and label in (a, p) for a, p in pairs)
        scores.append(2 * hits / (2 * hits + misses))
    return sum(scores) / len(scores)


def accuracy(actual: Sequence[str], predicted: Sequence[str]) -> float:
    return sum(a == p for a, p in zip(actual, predicted, strict=True)) / len(actual)


def split(
    examples: Mapping[str, Sequence[str]], share: float, seed: int
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(text, label) pairs to train on and held-out ones: of each label the same share."""
    shuffled = random.Random(seed)  # noqa: S311 - nothing secret
    training: list[tuple[str, str]] = []
    held_out: list[tuple[str, str]] = []
    for label, texts in sorted(examples.items()):
        order = sorted(texts)
        shuffled.shuffle(order)
        count = max(1, round(share * len(order)))
        held_out += [(text, label) for text in order[:count]]
        training += [(text, label) for text in order[count:]]
    return training, held_out

"""What a Hugging Face folder's README.md says about its model: the YAML at its top, as far as those
who call the model should know it."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

README = "README.md"
LIMIT_BYTES, LIMIT_CHARACTERS, LIMIT_ITEMS = 1024 * 1024, 1000, 32
# Hugging Face's own fields, and two that its cards have as sections.
FIELDS = ("license", "language", "datasets", "base_model", "purpose", "limits")


def card_of(folder: Path) -> dict[str, Any]:
    """The fields of the card that are texts or lists of texts, and ``metrics``: from its
    ``model-index``, a list of ``{"name", "value", "data"}``. {} without a card, or for one that
    cannot be read: it says nothing that a conversion needs."""
    try:
        with (folder / README).open(encoding="utf-8") as file:
            text = file.read(LIMIT_BYTES)
    except (OSError, UnicodeDecodeError):
        return {}
    fields = _front_matter(text)
    card: dict[str, Any] = {name: _texts(fields.get(name)) for name in FIELDS}
    card["metrics"] = _metrics(fields.get("model-index"))
    return {name: value for name, value in card.items() if value}


def _front_matter(text: str) -> Mapping[str, object]:
    from converters.sources.yaml_text import load_yaml

    if not text.startswith("---\n"):
        return {}
    end = text.find("\n---", 4)
    try:
        fields = load_yaml(text[4:end]) if end > 0 else None
    except ValueError:
        return {}
    return fields if isinstance(fields, Mapping) else {}


def _texts(value: object) -> str | list[str]:
    """The text, or those of a list; "" for anything else."""
    if isinstance(value, str):
        return value[:LIMIT_CHARACTERS]
    if isinstance(value, list):
        return [item[:LIMIT_CHARACTERS] for item in value[:LIMIT_ITEMS] if isinstance(item, str)]
    return ""


def _metrics(index: object) -> list[dict[str, str | float]]:
    return [
        metric
        for model in _mappings(index)
        for result in _mappings(model.get("results"))
        for metric in _metrics_of(result)
    ][:LIMIT_ITEMS]


def _metrics_of(result: Mapping[str, object]) -> Iterator[dict[str, str | float]]:
    """Those whose value is a number, each with the name of the data it was measured on."""
    dataset = result.get("dataset")
    data = dataset.get("name") if isinstance(dataset, Mapping) else None
    measured_on = {"data": data[:LIMIT_CHARACTERS]} if isinstance(data, str) and data else {}
    for metric in _mappings(result.get("metrics")):
        name, value = metric.get("name") or metric.get("type"), metric.get("value")
        if isinstance(name, str) and isinstance(value, int | float) and type(value) is not bool:
            yield {"name": name[:LIMIT_CHARACTERS], "value": value, **measured_on}


def _mappings(value: object) -> Sequence[Mapping[str, object]]:
    """Of the first items, since anchors can make a short text a list of any length."""
    items = value[:LIMIT_ITEMS] if isinstance(value, list) else []
    return [item for item in items if isinstance(item, Mapping)]

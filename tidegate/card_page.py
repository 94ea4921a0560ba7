"""docs/pipelines.md, written from the pipelines' cards.

python -m tidegate.card_page: the page, from docs/pipelines.json
curl ... /v1/pipelines | python -m tidegate.card_page record > docs/pipelines.json: these cards,
with the date, and without the examples
"""

import json
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

RECORDED = Path(__file__).parent.parent / "docs" / "pipelines.json"
_TOP = """# The pipelines' cards

*Written by `make docs` from `docs/pipelines.json`: what `GET /v1/pipelines` said on {date}.*

`GET /v1/pipelines` shows the cards of what your gateway serves, with the latency that it measures
itself. `pipeline_tag`, `license`, `language`, `datasets` and `base_model` are Hugging Face's
fields; `metrics` are those of its `model-index`. How the worked case's models were trained and
measured: [training](training.md).

- **`latency`** is that of the latest requests (at most 500) that one of the gateway's processes had
  answered by the versions served now, whatever their size: from the first byte of the request to
  the end of its response. It is `null` until {fewest} were answered. Read it for the machine that
  it names.
- **To record it again**, with the pipelines served and some requests answered:
  `curl -s localhost:8080/v1/pipelines -H "$KEY" | .venv/bin/python -m tidegate.card_page record >
  docs/pipelines.json`, then `make docs`.

"""
# The card's fields in the page's order; others follow as they come.
_FIRST = ("pipeline_tag", "model", "base_model", "license", "language", "datasets", "limits")
_LAST = ("metrics",)
_HIDDEN = ("task", "members")  # what the tag or the purpose says


def page(document: Mapping[str, Any]) -> str:
    """The recorded cards as Markdown."""
    from gateway.metrics import FEWEST

    pipelines = document["pipelines"]
    rows = [
        f"| [`{card['name']}`](#{card['name']}) | {_cell(card['purpose'])} | {_latency(card)} |"
        for card in pipelines
    ]
    parts = [
        _TOP.format(date=document["recorded_on"], fewest=FEWEST),
        "| pipeline | purpose | p50, p99 |\n|---|---|---|",
        *rows,
        *(line for card in pipelines for line in _section(card)),
    ]
    return "\n".join(parts) + "\n"


def recorded(document: Mapping[str, Any]) -> dict[str, Any]:
    """What ``GET /v1/pipelines`` says, to keep: with the date, and without the examples."""
    cards = [
        {key: value for key, value in card.items() if key != "example"}
        for card in document["pipelines"]
    ]
    return {"recorded_on": datetime.now(UTC).date().isoformat(), "pipelines": cards}


def _section(card: Mapping[str, Any]) -> Iterator[str]:
    yield f"\n## `{card['name']}`\n\n{card['purpose']}\n"
    if card["routes"]:
        yield f"- **routes**: {', '.join(f'`{route}`' for route in card['routes'])}"
    fields = card["card"]
    others = [key for key in fields if key not in (*_FIRST, *_LAST, *_HIDDEN)]
    for key in (*_FIRST, *others):
        if key in fields:
            yield f"- **{key}**: {_text(fields[key])}"
    if "members" in fields:
        yield f"- **members**: {', '.join(f'[`{name}`](#{name})' for name in fields['members'])}"
    latency = card["latency"]
    if latency:
        yield (
            f"- **latency**: {_latency(card)} over {latency['requests']} requests "
            f"({latency['machine']})"
        )
    if "metrics" in fields:
        yield "\n| metric | value | measured on |\n|---|---:|---|"
        for metric in fields["metrics"]:
            on = _cell(metric.get("data", ""))
            yield f"| {_cell(metric['name'])} | {metric['value']:.3f} | {on} |"


def _latency(card: Mapping[str, Any]) -> str:
    latency = card["latency"]
    return f"{latency['p50_ms']:.1f} ms, {latency['p99_ms']:.1f} ms" if latency else ""


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    return " ".join(str(value).split())


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    if sys.argv[1:] == ["record"]:
        click.echo(json.dumps(recorded(json.load(sys.stdin)), ensure_ascii=False, indent=2))
    else:
        click.echo(page(json.loads(RECORDED.read_text(encoding="utf-8"))), nl=False)

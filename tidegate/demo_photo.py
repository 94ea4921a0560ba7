"""The photograph in ``tidegate demo``: a real photo through the stack, and what is on it."""

import base64
from dataclasses import dataclass
from typing import Any

import click

from tidegate.client import GatewayClient

ENDPOINT = "image_classification"
PHOTO = "coffee"


@dataclass(frozen=True)
class Photo:
    """``labels`` are the likeliest classes, ``{"label", "score"}`` each, the best first."""

    file: str
    labels: list[dict[str, Any]]


def show_photo(client: GatewayClient) -> Photo:
    """What the model sees on the photo.

    ServingError says what the gateway answered, SourceMissing that the photo is not installed.
    """
    from converters.image.photos import photo_file

    file = photo_file(PHOTO)
    picture = base64.b64encode(file.read_bytes()).decode()
    return Photo(file.name, client.call(ENDPOINT, {"image": {"b64": picture}}).body["labels"])


def described(photo: Photo) -> str:
    """The photo's labels as lines for a person."""
    title = f"What is on {photo.file}, a photograph from scikit-image"
    lines = ["", click.style(title, bold=True)]
    return "\n".join([*lines, *(f"  {e['score']:6.1%}  {e['label']}" for e in photo.labels)])

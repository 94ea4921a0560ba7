"""The photo in ``tidegate demo``: a real photo through the stack, and what is in it."""

import base64
from dataclasses import dataclass
from typing import Any

import click

from tidegate.app.client import GatewayClient

ENDPOINT = "image_classification"
PHOTO = "coffee"


@dataclass(frozen=True)
class Photo:
    """``labels`` are the likeliest classes, best first: ``{"label": ..., "score": ...}`` each."""

    file: str
    labels: list[dict[str, Any]]


def show_photo(client: GatewayClient) -> Photo:
    """What the model sees in the photo.

    Raises ServingError with the gateway's reason, SourceMissing if the photo is not installed.
    """
    from converters.tasks.image_classification.photos import photo_file

    file = photo_file(PHOTO)
    image = base64.b64encode(file.read_bytes()).decode()
    return Photo(file.name, client.call(ENDPOINT, {"image": {"b64": image}}).body["labels"])


def describe_photo(photo: Photo) -> str:
    """The photo's labels, as lines of text."""
    title = f"What is in {photo.file}, a photo from scikit-image"
    lines = ["", click.style(title, bold=True)]
    return "\n".join(
        [*lines, *(f"  {label['score']:6.1%}  {label['label']}" for label in photo.labels)]
    )

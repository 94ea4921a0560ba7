"""The photograph in ``tidegate demo``: a real photo through the stack, and what is on it."""

import base64
from collections.abc import Callable

import click

from tidegate.client import Answer, GatewayClient

ENDPOINT = "image_classification"
PHOTO = "coffee"


def show_photo(client: GatewayClient, say: Callable[[str], None] = click.echo) -> Answer:
    """Send the photo and say what the model sees; the answer's body is ``{"labels": [{"label",
    "score"}, ...]}``.

    ServingError says what the gateway answered, SourceMissing that the photo is not installed.
    """
    from converters.photos import photo_file

    file = photo_file(PHOTO)
    picture = file.read_bytes()
    answer = client.call(ENDPOINT, {"image": {"b64": base64.b64encode(picture).decode()}})
    say(f"{file.name}, a photograph from scikit-image ({len(picture) // 1024} KiB), shows")
    for each in answer.body["labels"]:
        say(f"  {each['score']:6.1%}  {each['label']}")
    return answer

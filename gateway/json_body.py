"""JSON as JSON is: no NaN, no bottomless nesting."""

from typing import Any

import orjson

from gateway.errors import Malformed


def parse_json(data: bytes) -> Any:
    """The document; Malformed says where it breaks."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        text = str(error)
        if "depth limit" in text:
            text = "it is nested too deeply"
        elif b"NaN" in data or b"Infinity" in data:
            text += "; JSON has no NaN or Infinity: send such values as binary tensors under /v2"
        raise Malformed(f"the body is not JSON: {text}") from None

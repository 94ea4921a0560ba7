"""Requests that only turn text into tokens or back: ``tokenizer_request``, an input that vLLM's
backend does not have. They are answered at once and generate nothing."""

import json
from collections.abc import Mapping
from typing import Any, Protocol

from lm_sampling import Refused

MAX_BYTES = 2**19  # of a text's UTF-8: tokenized in 0.2 s, while no other request can begin
MAX_IDS = 2**18


class Tokenizer(Protocol):
    """What the driver offers, from any thread."""

    context_length: int
    token_bytes: dict[int, bytes]  # of each token of the vocabulary

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...


def reply_to(tokenizer: Tokenizer, request: str) -> str:
    """The reply, as JSON, to a request in JSON:

    ``{"prompt": TEXT, "add_special_tokens": true}`` -> ``{"tokens": [ID, ...],
    "token_strs": [TEXT, ...], "max_model_len": N}``; ``{"tokens": [ID, ...]}`` ->
    ``{"prompt": TEXT}``. Raises Refused.
    """
    try:
        asked: Any = json.loads(request)
    except ValueError:
        raise Refused("tokenizer_request is not JSON") from None
    if isinstance(asked, dict) and set(asked) == {"tokens"}:
        return json.dumps({"prompt": text_of(tokenizer.token_bytes, asked["tokens"])})
    adds = asked.get("add_special_tokens", True) if isinstance(asked, dict) else None
    if type(adds) is not bool or not isinstance(prompt := asked.get("prompt"), str):
        raise Refused("tokenizer_request must have a text 'prompt', or 'tokens'")
    if len(prompt.encode("utf-8", "replace")) > MAX_BYTES:
        raise Refused(f"a text to tokenize may have {MAX_BYTES} bytes")
    tokens = tokenizer.encode(prompt, adds)
    strings = [tokenizer.token_bytes[token].decode("utf-8", "replace") for token in tokens]
    limit = tokenizer.context_length
    return json.dumps({"tokens": tokens, "token_strs": strings, "max_model_len": limit})


def text_of(token_bytes: Mapping[int, bytes], tokens: Any) -> str:
    """The text of token ids; a character of which only a part is there becomes U+FFFD. Raises
    Refused."""
    if not isinstance(tokens, list) or len(tokens) > MAX_IDS:
        raise Refused(f"'tokens' must be a list of at most {MAX_IDS} token ids")
    for token in tokens:
        if type(token) is not int or token not in token_bytes:
            raise Refused(f"the token id {str(token)[:20]} is not in this model's vocabulary")
    return b"".join(token_bytes[token] for token in tokens).decode("utf-8", "replace")

"""OpenAI's own tokenizer, without the network: its vocabulary is in the package ``bpe-openai``."""

import gzip
import hashlib
from importlib.resources import files
from pathlib import Path

_URL = "https://openaipublic.blob.core.windows.net/encodings/{}.tiktoken"


def fill_cache(folder: Path, name: str = "cl100k_base") -> None:
    """Write the file that tiktoken would fetch into the folder for TIKTOKEN_CACHE_DIR; tiktoken
    compares its SHA-256 with OpenAI's."""
    packed = files("bpe_openai") / "data" / f"{name}.tiktoken.gz"
    key = hashlib.sha1(_URL.format(name).encode()).hexdigest()  # noqa: S324 - tiktoken's choice
    (folder / key).write_bytes(gzip.decompress(packed.read_bytes()))

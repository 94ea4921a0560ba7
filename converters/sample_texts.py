"""The user's own sample texts, from a file."""

from pathlib import Path

from converters.errors import SourceMissing, SourceRefused

# A proof runs the original on each: more would take hours and prove no more.
SAMPLE_LIMIT = 2000


def read_texts(path: Path) -> list[str]:
    """Distinct texts, one per line, at most ``SAMPLE_LIMIT``; SourceMissing or SourceRefused says
    what is wrong with the file."""
    if not path.is_file():
        raise SourceMissing(f"there is no file {path}: give one with a text on each line")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise SourceRefused(f"{path} is not UTF-8 text: write one sample per line") from error
    texts = list(dict.fromkeys(line for line in lines if line))
    if not texts:
        raise SourceRefused(f"{path} has no samples: write one per line")
    return texts[:SAMPLE_LIMIT]

"""Real photos to send, from the packages ``scikit-image`` and ``scikit-learn``.

Read from where pip installed them: 17 to 792 kB each, half of them over 140 kB, as pictures that
people attach.
"""

from pathlib import Path

from loadtests.preflight import CannotStart
from modelspec.packages import package_folder

_FOLDERS = {"skimage": "data", "sklearn": "datasets/images"}
_KINDS = {".jpg", ".png"}
LEAST_BYTES = 16_000  # smaller ones are drawings for the packages' own tests


def photos() -> list[bytes]:
    """Their files, in one order in every run; CannotStart if none is installed."""
    files = [
        file
        for package, folder in _FOLDERS.items()
        if (place := package_folder(package))
        for file in (place / folder).glob("*")
        if file.suffix in _KINDS and file.stat().st_size >= LEAST_BYTES
    ]
    if not files:
        raise CannotStart(
            "the photos to send are in the packages scikit-image and scikit-learn, which are not "
            "installed: pip install scikit-image scikit-learn"
        )
    return [file.read_bytes() for file in sorted(files, key=_name)]


def _name(file: Path) -> str:
    return file.name

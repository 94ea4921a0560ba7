"""The flags become Locust's command line; what cannot run is refused with exit code 2."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from loadtests import __main__ as loadtests
from loadtests.__main__ import Options, command, locust_arguments
from loadtests.preflight import CannotStart

HEADLESS = Options(
    headless=True,
    url="http://127.0.0.1:8080",
    grpc_address="127.0.0.1:8001",
    only=None,
    pipeline="",
    api=(),
    gateway_grpc="",
    users=16,
    spawn_rate=8.0,
    run_time="15s",
    max_p99_ms=None,
    json=None,
    ui_port=8089,
)


def started(monkeypatch, *arguments: str, environ: dict[str, str] | None = None) -> list[str]:
    """The command line that would replace this process."""
    commands: list[list[str]] = []
    monkeypatch.setattr(loadtests, "check", lambda options: None)
    monkeypatch.setattr(loadtests.os, "execv", lambda path, argv: commands.append(argv))
    result = CliRunner(env=environ or {}).invoke(command, arguments)
    assert result.exit_code == 0, result.output
    return commands[0]


def value(arguments: list[str], flag: str) -> str:
    return arguments[arguments.index(flag) + 1]


def test_headless_runs_both_protocols_for_a_while():
    arguments = locust_arguments(HEADLESS)
    assert Path(value(arguments, "-f")).name == "locustfile.py"
    assert value(arguments, "--run-time") == "15s"
    assert arguments[-2:] == ["RestUser", "TritonUser"]
    assert "--web-port" not in arguments


def test_a_pipeline_is_loaded_over_the_apis_that_are_named(monkeypatch):
    flags = "--headless --pipeline chat --api chat=3 --api grpc-stream --gateway-grpc 127.0.0.1:9"
    arguments = started(monkeypatch, *flags.split())
    assert arguments[-1:] == ["PipelineUser"]
    assert "RestUser" not in arguments
    assert value(arguments, "--pipeline") == "chat"
    assert value(arguments, "--gateway-grpc-address") == "127.0.0.1:9"
    place = arguments.index("--api")
    assert arguments[place : place + 4] == ["--api", "chat=3", "--api", "grpc-stream"]


def test_the_ui_is_bound_to_loopback(monkeypatch):
    arguments = started(monkeypatch)
    assert value(arguments, "--web-host") == "127.0.0.1"
    assert value(arguments, "--web-port") == "8089"
    assert "--headless" not in arguments


def test_every_flag_reaches_locust(monkeypatch):
    flags = "--headless --only grpc --users 3 --spawn-rate 2 --run-time 4 --max-p99-ms 250"
    arguments = started(monkeypatch, *flags.split(), "--json", "out.json")
    for flag, expected in (
        ("--users", "3"),
        ("--spawn-rate", "2.0"),
        ("--run-time", "4"),
        ("--max-p99-ms", "250.0"),
        ("--summary-file", "out.json"),
    ):
        assert value(arguments, flag) == expected
    assert arguments[-1] == "TritonUser"
    assert "RestUser" not in arguments


def test_addresses_come_from_the_environment(monkeypatch):
    environ = {
        "TIDEGATE_URL": "http://127.0.0.1:9090/",
        "TIDEGATE_TRITON_GRPC_ADDRESS": "127.0.0.1:9001",
        "TIDEGATE_LOCUST_PORT": "9089",
        "TIDEGATE_API_KEY": "tg_secret",
    }
    arguments = started(monkeypatch, environ=environ)
    assert value(arguments, "--host") == "http://127.0.0.1:9090"
    assert value(arguments, "--grpc-address") == "127.0.0.1:9001"
    assert value(arguments, "--web-port") == "9089"
    assert "tg_secret" not in " ".join(arguments)  # any user can read a command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run-time", "soon"], "pass seconds, or for example 90s"),
        (["--only", "soap"], "'rest', 'grpc'"),
        (["--users", "0"], "x>=1"),
        (["--headless", "--users", "1"], "--users 1 is too few for rest and grpc"),
        (["--headless", "--only", "rest", "--url", "nowhere"], "pass http://HOST:PORT"),
    ],
)
def test_what_cannot_run_is_refused(arguments, message):
    result = CliRunner(env={"TIDEGATE_API_KEY": "tg_x"}).invoke(command, arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_without_locust_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(loadtests.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CannotStart, match=r"pip install 'tidegate\[load\]'"):
        loadtests.check(HEADLESS)


def test_the_folder_of_the_json_file_is_created(monkeypatch, tmp_path):
    for name in ("check_gateway", "check_triton", "find_key"):
        monkeypatch.setattr(loadtests, name, lambda *_: "")
    target = tmp_path / "new" / "figures.json"
    loadtests.check(Options(**{**vars(HEADLESS), "json": target}))
    assert target.parent.is_dir()


def test_help_has_an_example_and_the_exit_codes():
    text = CliRunner().invoke(command, ["--help"]).output
    assert "python -m loadtests --headless" in text
    assert "Exit codes" in text

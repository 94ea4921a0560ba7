"""Whatever a page names is there: pages and headings, files, commands and their flags, settings,
config parameters, metrics, error codes, routes and every other name."""

import functools
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import click

import modelspec.parameters
from gateway.errors import GatewayError
from gateway.settings import Settings
from tidegate.cli import cli

ROOT = Path(__file__).parent.parent
# The change log tells of what was, too.
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "ARCHITECTURE")),
    *sorted((ROOT / "docs").glob("*.md")),
]
PACKAGES = ("converters", "ensembles", "gateway", "loadtests", "modelspec", "serving", "tidegate")
ROOMS = "|".join((*PACKAGES, "deploy", "docs", "tests"))
# Made while it runs, or by the reader.
MADE = re.compile(r"NAME|VERSION|\.\.\.|\*|\bmy\b|[A-Z]{3}")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# What a page names and other programs define: perf_analyzer's and curl's flags, NVIDIA's example
# clients, the sampling parameters of vLLM, options of Triton's, ONNX's, gRPC's and the Hub's.
FOREIGN_FLAGS = {"--help", "--dyna", "--request-compression-algorithm", "--http2", "--trace-config"}
FOREIGN_NAMES = {
    "simple_grpc_custom_repeat",
    "stop_token_ids",
    "min_tokens",
    "ignore_eos",
    "chat_template_kwargs",
    "max_queue_size",
    "allow_timeout_override",
    "prefer_nhwc",
    "keep_io_types",
    "enable_retries",
    "minimal_stack",
    "optimization_target",
    "grpc_health_probe",
    "too_many_pings",
    "mean_sqrt_len_tokens",
}
# Made by us from the name of a column.
COMPOSED_NAMES = {"label_column"}


def _outside_blocks(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def _spans(page: Path) -> list[str]:
    """What is `between backticks`, also over the end of a line."""
    spans = re.findall(r"(?<!`)`([^`]+)`(?!`)", _outside_blocks(page))
    return [" ".join(span.split()) for span in spans]


def _command_lines(page: Path) -> list[str]:
    """The lines of the page's shell blocks, and its spans."""
    blocks = [code for language, code in FENCE.findall(page.read_text()) if language == "sh"]
    return [*"\n".join(blocks).replace("\\\n", " ").splitlines(), *_spans(page)]


@functools.cache
def _source() -> str:
    """Everything that is executed, or read by what is executed."""
    files = [ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / "constraints.txt"]
    for room in (*PACKAGES, "deploy"):
        files += [*(ROOT / room).rglob("*.py"), *(ROOT / room).rglob("*.template")]
    return "\n".join(file.read_text() for file in files)


@functools.cache
def _words_of_source() -> set[str]:
    data = [*(ROOT / "model_repository").iterdir(), *(ROOT / "docs/gpu").rglob("*.json")]
    return set(re.findall(r"\w+", _source())) | {path.stem for path in data}


def _heading_ids(page: Path) -> set[str]:
    """The ids that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", _outside_blocks(page), re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


def _calls(page: Path) -> Iterator[list[str]]:
    """The words of each call of ``tidegate`` on a page, without what precedes it."""
    for line in _command_lines(page):
        for call in re.split(r"[|;]|&&", line):
            match = re.match(r"[\s$\"(]*(?:\w+=\S+\s+)*(?:[\w./]*/)?tidegate (?!of\b)(.*)", call)
            if match:
                yield shlex.split(match[1].strip("()"), comments=True)


def _commands() -> Iterator[tuple[str, click.Command]]:
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        yield name, command
        for inner in getattr(command, "commands", {}).values():
            yield f"{name} {inner.name}", inner


@functools.cache
def _flags() -> dict[str, set[str]]:
    """The flags of each command; those of ``tidegate`` itself under the empty name."""
    flags = {"": {"--help", "--version"}}
    for name, command in _commands():
        options = [[*parameter.opts, *parameter.secondary_opts] for parameter in command.params]
        flags[name] = {"--help"}.union(*options)
    return flags


def _command_of(words: list[str]) -> str | None:
    for count in (2, 1):
        if " ".join(words[:count]) in _flags():
            return " ".join(words[:count])
    return "" if not words or words[0].startswith("-") else None


def test_every_link_leads_to_a_page_and_a_heading():
    missing = []
    for page in PAGES:
        links = re.findall(r"\]\(([^)#:\s]*)(?:#([^)\s]+))?\)", _outside_blocks(page))
        for target, heading in links:
            linked = page.parent / target if target else page
            if not linked.exists() or (heading and heading not in _heading_ids(linked)):
                missing.append(f"{page.name}: {target}#{heading}")
    assert missing == []


def test_every_file_is_there():
    path = re.compile(rf"(?<![\w/.~-])((?:{ROOMS})/[\w./*-]*[\w/])(?:::(\w+))?")
    missing = []
    for page in PAGES:
        for file, name in path.findall("\n".join(_spans(page))):
            if MADE.search(file) or ((ROOT / file).exists() and not name):
                continue
            if not (ROOT / file).exists() or f"def {name}(" not in (ROOT / file).read_text():
                missing.append(f"{page.name}: {file}::{name}")
    assert missing == []


def test_every_command_has_its_flags():
    missing, count = [], 0
    for page in PAGES:
        for words in _calls(page):
            count += 1
            name = _command_of(words)
            flags = {word.partition("=")[0] for word in words if word.startswith("--")}
            if name is None or flags - _flags()[name]:
                missing.append(f"{page.name}: tidegate {' '.join(words)}")
    assert missing == []
    assert count > 100


def test_every_flag_without_its_command_is_one_of_somebody():
    ours = set().union(*_flags().values()) | set(re.findall(r"--[a-z][a-z\d-]+", _source()))
    missing = []
    for page in PAGES:
        named = re.findall(r"^--[a-z][a-z\d-]+", "\n".join(_spans(page)), re.MULTILINE)
        missing += [f"{page.name}: {flag}" for flag in named if flag not in ours | FOREIGN_FLAGS]
    assert missing == []


def test_every_make_target_and_module_is_there():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    missing = []
    for page in PAGES:
        for line in _command_lines(page):
            named = re.findall(r"^make ([a-z][a-z-]*)", line)
            missing += [f"{page.name}: make {name}" for name in named if name not in targets]
            for module in re.findall(rf"python -m ((?:{ROOMS})[\w.]*)", line):
                file = ROOT / module.replace(".", "/")
                if not file.with_suffix(".py").exists() and not (file / "__main__.py").exists():
                    missing.append(f"{page.name}: {module}")
    assert missing == []


def test_every_setting_is_one():
    settings = {f"TIDEGATE_{field.name.upper()}" for field in fields(Settings)}
    settings |= set(re.findall(r"TIDEGATE_\w+", _source()))
    for flag in _flags()["up"]:
        settings.add(f"TIDEGATE_{flag[2:].upper().replace('-', '_')}")
    missing = []
    for page in PAGES:
        named = re.findall(r"TIDEGATE_[A-Z_]*[A-Z]", page.read_text())
        missing += [f"{page.name}: {setting}" for setting in named if setting not in settings]
    assert missing == []


def test_every_setting_is_documented_with_its_default():
    page = (ROOT / "docs/settings.md").read_text()
    rows = dict(re.findall(r"^\| `(TIDEGATE_\w+)` \| (.+?) \|", page, re.MULTILINE))
    for field in fields(Settings):
        default = getattr(Settings(), field.name)
        expected = ",".join(default) if isinstance(default, tuple) else str(default)
        expected = expected.lower() if isinstance(default, bool) else expected
        assert rows[f"TIDEGATE_{field.name.upper()}"] == (f"`{expected}`" if expected else "(none)")


def test_every_config_parameter_and_metric_is_one():
    parameters = list(vars(modelspec.parameters).values())
    missing = []
    for page in PAGES:
        named = re.findall(r"`(tidegate\.[a-z_]+)`", page.read_text())
        missing += [f"{page.name}: {name}" for name in named if name not in parameters]
        metrics = re.findall(r"\btidegate_[a-z_]+", page.read_text())
        stems = map(_stem, metrics)
        missing += [f"{page.name}: {stem}" for stem in stems if f'"{stem}' not in _source()]
    assert missing == []


def test_every_error_code_is_in_the_table_and_no_other():
    def codes(error: type[GatewayError]) -> set[str]:
        return {error.code}.union(*(codes(inner) for inner in error.__subclasses__()))

    _, _, table = (ROOT / "docs/calling.md").read_text().partition("| code | what happened |")
    rows = re.findall(r"^\| `([a-z_]+)` \|", table.partition("\n\n")[0], re.MULTILINE)
    assert set(rows) == codes(GatewayError)


def test_every_route_is_one():
    # A task's route is its pipeline's name, which is the reader's to choose.
    missing = []
    for page in PAGES:
        routes = re.findall(r"(?<![\w.])/(?:v2|admin)[\w/{}-]*", "\n".join(_spans(page)))
        for route in routes:
            parts = re.sub("/models/[^/]+", "/models", route).lstrip("/").split("/")
            missing += [f"{page.name}: {route}" for part in parts if f"/{part}" not in _source()]
    assert missing == []


def test_every_other_name_occurs_in_the_code():
    known = _words_of_source() | FOREIGN_NAMES | COMPOSED_NAMES
    missing = []
    for page in PAGES:
        names = [span for span in _spans(page) if re.fullmatch(r"[a-z]+(_[a-z\d]+)+", span)]
        missing += [f"{page.name}: {name}" for name in names if not {name, _stem(name)} & known]
    assert missing == []


def _stem(metric: str) -> str:
    """The metric's name without the endings that prometheus-client adds by itself."""
    return re.sub("_(total|bucket|sum|count)$", "", metric)

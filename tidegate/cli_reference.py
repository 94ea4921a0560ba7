"""docs/cli.md, written from the commands themselves: ``python -m tidegate.cli_reference``."""

import inspect
from collections.abc import Iterator

import click

from tidegate.cli import cli
from tidegate.commands.exit_code import HELP

TITLE = """# The command line

*Written by `make docs` from the commands themselves; edit their help instead.*

`tidegate --help`, and `--help` after a verb, print the same text. `--json` prints one document on
stdout and nothing else there. Complete verbs and flags in your shell with `tidegate completion`.
"""


def reference() -> str:
    """The page, as Markdown."""
    root = click.Context(cli, info_name="tidegate")
    verbs = [(name, cli.get_command(root, name)) for name in cli.list_commands(root)]
    contents = [
        f"| [`tidegate {name}`](#tidegate-{name}) | {verb.short_help} |"
        for name, verb in verbs
        if verb
    ]
    sections = [line for name, verb in verbs if verb for line in _section(verb, root, name)]
    parts = [TITLE, "| verb | |", "|---|---|", *contents, "", HELP, "", *sections]
    return "\n".join(parts).rstrip() + "\n"


def _section(command: click.Command, parent: click.Context, name: str) -> Iterator[str]:
    context = click.Context(command, info_name=name, parent=parent)
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    yield f"## {context.command_path}" if parent.parent is None else f"### {context.command_path}"
    yield ""
    text, _, example = inspect.cleandoc(command.help or "").partition("\b\n")
    yield from (text.strip(), "", "```", usage, *(["", example.strip()] if example else []), "```")
    yield ""
    options = [option for option in command.params if isinstance(option, click.Option)]
    records = [record for option in options if (record := option.get_help_record(context))]
    if records:
        yield from ("| option | |", "|---|---|")
        for flags, description in records:
            cells = f"`{flags}`", " ".join(description.split())
            yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
        yield ""
    if isinstance(command, click.Group):
        for verb in command.list_commands(context):
            member = command.get_command(context, verb)
            if member:
                yield from _section(member, context, verb)


if __name__ == "__main__":
    click.echo(reference(), nl=False)

"""``tidegate chat``: a conversation in the terminal, as it is generated."""

import contextlib
import sys
from typing import TYPE_CHECKING

import click

from tidegate.app.paths import Paths
from tidegate.commands.options import json_option, stack_option
from tidegate.commands.output import print_json

if TYPE_CHECKING:
    from tidegate.app.chat import Conversation


_AFRESH = "/new"


@click.command("chat", short_help="Talk with a chat model, in the terminal")
@click.argument("text", required=False)
@click.option(
    "--model", default="", help="The chat model. Default: the only one, or the one named chat."
)
@click.option("--system", default="", help="A system message, at the beginning.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="The most tokens of an answer.")
@click.option(
    "--temperature",
    type=click.FloatRange(0, 2),
    help="0 is the likeliest answer. Default: the API's, 1, at which a small model rambles.",
)
@click.option(
    "--url",
    envvar="TIDEGATE_URL",
    show_envvar=True,
    help="The gateway. Default: that of the stack running here, else http://127.0.0.1:8080.",
)
@json_option
@stack_option
def command(
    text: str | None,
    model: str,
    system: str,
    max_tokens: int | None,
    temperature: float | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Ask TEXT and print the answer while it is generated. Without TEXT, talk until Ctrl-D, or
    answer what a pipe sends.

    Needs a running stack (`make up`) that serves a chat model.

    \b
    tidegate chat "Where is my parcel?"
    tidegate chat --model my_chat --system "Be brief."
    """
    from tidegate.app.chat import ChatOptions, Conversation

    is_talk = text is None and sys.stdin.isatty()
    if is_talk and as_json:
        raise click.UsageError("--json prints one answer: pass TEXT")
    if text is None and not is_talk:
        text = sys.stdin.read().strip()
        if not text:
            raise click.UsageError("there is nothing to ask: pass TEXT")
    options = ChatOptions(model, system, max_tokens, temperature)
    with contextlib.closing(Conversation.open(Paths.current(), url, options)) as conversation:
        if is_talk:
            _talk(conversation)
        elif as_json:
            reply = "".join(conversation.ask(text or ""))
            print_json(
                {
                    "model": conversation.model,
                    "answer": reply,
                    "finish_reason": conversation.finish_reason,
                    "usage": conversation.usage,
                }
            )
        else:
            _print_answer(conversation, text or "")


def _talk(conversation: "Conversation") -> None:
    """Turn by turn, until the end of the input; Ctrl-C ends only an answer under way."""
    from rich.console import Console

    from serving.errors import ServingError

    console = Console(highlight=False)
    hint = f"Ctrl-C ends an answer, {_AFRESH} begins afresh, Ctrl-D ends"
    console.print(f"[bold]{conversation.model}[/bold]: {hint}", style="dim")
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - ``input`` then edits the line, and remembers those before
    while True:
        try:
            text = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if text == _AFRESH:
            conversation.begin()
        elif text:
            try:
                _print_answer(conversation, text)
            except KeyboardInterrupt:
                continue
            except ServingError as error:  # such as a full context: the conversation goes on
                console.print(str(error), style="red", markup=False)


def _print_answer(conversation: "Conversation", text: str) -> None:
    from tidegate.app.chat import printable

    try:
        for piece in conversation.ask(text):
            click.echo(printable(piece), nl=False)
            sys.stdout.flush()
    finally:
        click.echo()  # whatever ended it, the next line is one of its own
    if conversation.finish_reason == "length":
        click.secho("(cut: --max-tokens, or the model's own limit)", dim=True, err=True)

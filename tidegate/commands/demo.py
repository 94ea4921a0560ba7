"""``tidegate demo``: real sentences and a real photo through the running stack."""

import sys
from dataclasses import asdict

import click

from tidegate.app.paths import Paths
from tidegate.commands.options import Address, json_option, stack_option
from tidegate.commands.output import print_json


@click.command("demo", short_help="Send sentences, a photo and a question through the stack")
@json_option
@stack_option
@click.option(
    "--url",
    envvar="TIDEGATE_URL",
    show_envvar=True,
    help="The gateway. Default: that of the stack running here, else http://127.0.0.1:8080.",
)
@click.option(
    "--triton",
    type=Address(),
    envvar="TIDEGATE_TRITON_GRPC_ADDRESS",
    show_envvar=True,
    help="Triton's gRPC address. Default: that of the stack running here, else 127.0.0.1:8001.",
)
def command(as_json: bool, url: str | None, triton: str | None) -> None:
    """Embed real sentences, show where the time went, classify a photo, and ask the chat model.

    Needs a running stack (`make up`), and shows what that serves. With smart_reply it also plays a
    customer's conversation; with customer_service it is in English and Chinese.

    \b
    tidegate demo
    tidegate demo --json
    """
    from tidegate.app.demo import ENDPOINT, QUESTION, chat_reply, gateway, run
    from tidegate.app.demo_conversation import conversation_text, converse

    paths = Paths.current()
    client = gateway(paths, url)
    turns = converse(client)
    result = None if turns and not client.serves(ENDPOINT) else run(paths, url, triton)
    reply = chat_reply(paths, url)
    if as_json:
        text = "".join(reply)
        chat = {"question": QUESTION, "answer": text} if text else None
        shown = asdict(result) if result else {}
        conversation = [asdict(turn) for turn in turns] or None
        print_json({**shown, "chat": chat, "conversation": conversation})
        return
    if turns:
        click.echo(conversation_text(turns))
    if result:
        click.echo("\n" + result.text() if turns else result.text())
    heading = click.style(f"\nWhat the chat model answers to {QUESTION!r}\n", bold=True) + "  "
    for number, piece in enumerate(reply):
        click.echo(piece if number else heading + piece, nl=False)
        sys.stdout.flush()
    click.echo()

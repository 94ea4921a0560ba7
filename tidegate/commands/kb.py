"""``tidegate kb``: the knowledge base from which ``smart_reply`` answers."""

from pathlib import Path

import click

from tidegate.app.paths import Paths
from tidegate.app.signals import interrupt_on_sigterm
from tidegate.commands.options import (
    grace_option,
    json_option,
    repositories_option,
    servers_option,
)
from tidegate.commands.output import print_outcomes, progress


@click.group("kb", short_help="Build the knowledge base of smart_reply")
def command() -> None:
    """The knowledge base from which smart_reply answers."""


@command.command("build")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--messages",
    type=click.Path(path_type=Path),
    help="CSV of what people ask (message,question): chooses and measures the thresholds.",
)
@click.option(
    "--language",
    type=click.Choice(["en", "zh"]),
    help="Of FILES, if they are not to be looked at: chooses text_embedding (en), or "
    "multilingual_embedding (zh; it reads both, English worse).",
)
@repositories_option
@servers_option
@grace_option
@json_option
def build(
    files: tuple[Path, ...],
    messages: Path | None,
    language: str | None,
    repositories: tuple[Path, ...],
    addresses: tuple[str, ...],
    grace_s: float,
    as_json: bool,
) -> None:
    """Build a knowledge base of FILES and publish it as the next version of smart_reply.

    FILES are CSV (question,answer,source or text,source), YAML (the same, or chatterbot-corpus'
    conversations) or Markdown (each paragraph a passage). Without FILES: the technical dialogues of
    chatterbot-corpus, or with --language zh an example in Chinese. Running servers answer from it
    at once, and tidegate rollback smart_reply goes back.

    \b
    tidegate kb build
    tidegate kb build faq.csv handbook.md --messages asked.csv
    tidegate kb build --language zh
    """
    from tidegate.app.knowledge_base import build as build_knowledge_base
    from tidegate.app.rollout import RolloutOptions, roll_out

    interrupt_on_sigterm()
    options = RolloutOptions(repositories, addresses, grace_s)
    paths = Paths.current()
    with progress(err=as_json) as report:
        change = build_knowledge_base(
            files, messages, language, paths, lambda line: report(f"kb: {line}")
        )
        print_outcomes(roll_out(change, options, paths, report), as_json=as_json)

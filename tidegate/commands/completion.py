"""``tidegate completion SHELL``: the script that completes verbs and flags."""

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")


@click.command("completion", short_help="Print a shell's completion script")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the script with which SHELL completes tidegate's verbs, flags and their values.

    \b
    source <(tidegate completion bash)                       in ~/.bashrc
    source <(tidegate completion zsh)                        in ~/.zshrc
    tidegate completion fish > ~/.config/fish/completions/tidegate.fish
    """
    completion = get_completion_class(shell)
    if completion is None:
        raise click.UsageError(f"there is no completion for {shell}")
    root = context.find_root()
    click.echo(completion(root.command, {}, "tidegate", "_TIDEGATE_COMPLETE").source())

"""netalloc completion: what a shell needs to complete commands, networks and owners."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_WHERE = {
    "bash": 'eval "$(netalloc completion bash)" in ~/.bashrc',
    "zsh": 'eval "$(netalloc completion zsh)" in ~/.zshrc',
    "fish": "netalloc completion fish > ~/.config/fish/completions/netalloc.fish",
}


@click.command()
@click.argument("shell", type=click.Choice(sorted(_WHERE)))
def completion(shell: str) -> None:
    """Print the completion of a shell.

    \b
    bash: eval "$(netalloc completion bash)" in ~/.bashrc
    zsh:  eval "$(netalloc completion zsh)" in ~/.zshrc
    fish: netalloc completion fish > ~/.config/fish/completions/netalloc.fish
    """
    from netalloc.cli.main import cli

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "netalloc", "_NETALLOC_COMPLETE").source())

"""Where the command `netalloc` begins: says what to install where click is missing."""

import os
import sys

from netalloc.cli.commands import help_text


def main() -> None:
    """Run the command line of this process, and exit with its status."""
    completing = "_NETALLOC_COMPLETE" in os.environ  # a shell asks
    if sys.argv[1:] in ([], ["--help"], ["-h"]) and not completing:
        print(help_text())  # noqa: T201
        return
    try:
        import click  # noqa: F401
    except ImportError:
        sys.stderr.write(
            "netalloc: the command line needs click and rich: pip install 'netalloc[cli]'\n"
        )
        sys.exit(1)
    from netalloc.cli.main import run

    run()

"""netalloc cni: install the plugins, take over host-local's addresses."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from netalloc.cni.errors import CniError
from netalloc.errors import NetallocError


def parser() -> argparse.ArgumentParser:
    """What may be asked for."""
    made = argparse.ArgumentParser(
        "netalloc cni", description="Plugins for container runtimes (CNI)."
    )
    commands = made.add_subparsers(dest="command", required=True)
    install = commands.add_parser("install", help="put the plugins where libcni looks")
    install.add_argument("folder", nargs="?", type=Path, default=Path("/opt/cni/bin"))
    install.add_argument(
        "--example", type=Path, metavar="DIR", help="write an example there: /etc/cni/net.d"
    )
    taking = commands.add_parser("import", help="take over what host-local has given")
    taking.add_argument("config", type=Path, help="the .conf or .conflist of the network")
    taking.add_argument("--data-dir", metavar="DIR", help="host-local's, /var/lib/cni/networks")
    return made


def main(arguments: list[str] | None = None) -> int:
    """Do it; the exit status."""
    given = parser().parse_args(arguments)
    try:
        for line in _done(given):
            sys.stdout.write(f"{line}\n")
    except (CniError, NetallocError, OSError, ValueError) as error:
        sys.stderr.write(f"netalloc: {error}\n")
        return 1
    return 0


def _done(given: argparse.Namespace) -> list[str]:
    if given.command == "install":
        from netalloc.cni.install import install

        return install(given.folder, given.example)
    from netalloc.cni.takeover import plugins_of, take_over

    document = json.loads(given.config.read_text())
    configs = plugins_of(document) if isinstance(document, dict) else []
    if not configs:
        raise NetallocError(f"{given.config} has no ipam of host-local or netalloc-ipam")
    done = [line for one in configs for line in take_over(one, given.data_dir)]
    return done or ["nothing to take over"]


if __name__ == "__main__":
    sys.exit(main())

"""Rules of other programs that would drop what is forwarded to containers."""

import json
import shutil
from collections.abc import Iterator

from netalloc.errors import CommandError
from netalloc.host.command import run

_OURS = "netalloc"


def dropping() -> list[str]:
    """Base chains of the forward hook whose policy is drop, and that are not ours, in words.

    Asks nft, and the iptables commands of both kinds that are there: some 10 ms. Raises
    CommandError where nft may not be asked.
    """
    found = list(_of_nft()) if shutil.which("nft") else []
    for command in ("iptables-legacy", "ip6tables-legacy"):
        if shutil.which(command) and _has_tables(command):
            found += _of_legacy(command)
    return found


def _of_nft() -> Iterator[str]:
    for one in json.loads(run(["nft", "-j", "list", "chains"])).get("nftables", ()):
        chain = one.get("chain", {})
        drops = chain.get("hook") == "forward" and chain.get("policy") == "drop"
        if drops and not chain["table"].startswith(_OURS):
            yield f"{chain['family']} table {chain['table']}, chain {chain['name']}"


def _of_legacy(command: str) -> Iterator[str]:
    try:
        rules = run([command, "-w", "1", "-S", "FORWARD"])
    except CommandError:
        return
    if rules.startswith("-P FORWARD DROP"):
        yield f"{command}, chain FORWARD"


def _has_tables(command: str) -> bool:
    """Whether there is any table: the command would make one by looking."""
    name = "ip6_tables_names" if command.startswith("ip6") else "ip_tables_names"
    try:
        with open(f"/proc/net/{name}") as names:  # noqa: PTH123
            return "filter" in names.read().split()
    except OSError:
        return False

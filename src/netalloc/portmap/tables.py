"""Running iptables: one command, whole tables read, transactions written."""

from collections.abc import Iterable, Iterator, Mapping

from netalloc.host.command import run
from netalloc.portmap.chains import Rules

WAIT = ("-w", "5")  # seconds for the xtables lock; a bare -w would swallow the next word


def iptables(*args: str) -> str:
    """Run iptables, waiting up to 5 s for the xtables lock, and return what it printed.

    Raises CommandError with the command line, the status and stderr; one that says so when
    there is no iptables on PATH or the privilege is missing.
    """
    return run(["iptables", *WAIT, *args])


def variant() -> str:
    """Which iptables is on PATH: "legacy" or "nft"."""
    return "nft" if "nf_tables" in run(["iptables", "-V"]) else "legacy"


def read(*tables: str) -> dict[str, Rules]:
    """All rules of these tables, by table and chain."""
    state: dict[str, Rules] = {}
    for table in tables:
        rules = state[table] = {}
        for line in run(["iptables-save", "-t", table]).splitlines():
            if line[:3] == "-A ":
                chain, _, rule = line[3:].partition(" ")
                rules[chain].append(rule)
            elif line[:1] == ":":
                rules[line[1:].partition(" ")[0]] = []
    return state


def restore(changes: Mapping[str, Iterable[str]]) -> None:
    """Apply lines to tables, each table in one transaction; nothing else is touched."""
    run(["iptables-restore", *WAIT, "--noflush"], _script(changes))


def _script(changes: Mapping[str, Iterable[str]]) -> Iterator[str]:
    for table, lines in changes.items():
        yield f"*{table}\n"
        yield from lines
        yield "COMMIT\n"

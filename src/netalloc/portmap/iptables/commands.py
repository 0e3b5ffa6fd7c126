"""Running iptables and ip6tables: one command, whole tables read, transactions written."""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from netalloc.errors import CommandError, InvalidValueError, NetallocError
from netalloc.family import V4, Family
from netalloc.host import runtime_dir
from netalloc.host.command import run
from netalloc.portmap.iptables.rules import Rules
from netalloc.values import shown

WAIT = ("-w", "5")  # seconds for the xtables lock; a bare -w would swallow the next word
_LOCK = "iptables.lock"


def iptables(*args: str) -> str:
    """Run iptables, waiting up to 5 s for the xtables lock, and return what it printed.

    Raises CommandError with the command line, the status and stderr; one that says so when
    there is no iptables on PATH or the privilege is missing; InvalidValueError for an
    argument that is no text or that no command can be given.
    """
    for arg in args:
        if not isinstance(arg, str) or "\0" in arg or any("\ud800" <= c <= "\udc7f" for c in arg):
            raise InvalidValueError(f"iptables cannot be given {shown(arg)}")
    return run(["iptables", *WAIT, *args])


def require(family: Family) -> None:
    """Raise CommandError, which says what to install, when a family's commands are missing."""
    for command in (f"{family.iptables}-save", f"{family.iptables}-restore"):
        if shutil.which(command) is None:
            raise CommandError(
                f"command not found: {command} is not on PATH; mappings of IPv{family.version} "
                f"need it: install the package iptables (on some systems {family.iptables})",
                (command,),
            )


def variant(family: Family = V4) -> str:
    """Which iptables is on PATH: "legacy" or "nft"."""
    return "nft" if "nf_tables" in run([family.iptables, "-V"]) else "legacy"


def other_variant(family: Family = V4) -> tuple[str, Rules]:
    """The iptables that is not the one on PATH, and what its nat table holds."""
    other = "legacy" if variant(family) == "nft" else "nft"
    save = f"{family.iptables}-{other}-save"
    # A look at a legacy table would make it: see first whether it is there.
    if shutil.which(save) is None or (other == "legacy" and "nat" not in legacy_tables(family)):
        return other, {}
    return other, _rules(run([save, "-t", "nat"]))


def read(*tables: str, family: Family = V4, variant: str | None = None) -> dict[str, Rules]:
    """All rules of these tables, by table and chain; of one variant, or that on PATH."""
    save = f"{family.iptables}{f'-{variant}' if variant else ''}-save"
    return {table: _rules(run([save, "-t", table])) for table in tables}


def has_table(table: str, family: Family = V4) -> bool:
    """Whether there is such a table, which a look would make where iptables is the legacy one."""
    return variant(family) == "nft" or table in legacy_tables(family)


def legacy_tables(family: Family = V4) -> list[str]:
    """The tables of legacy iptables that are there; none where we may not look."""
    try:
        return Path(f"/proc/thread-self/net/{family.word}_tables_names").read_text().split()
    except OSError:
        return []


def _rules(dump: str) -> Rules:
    rules: Rules = {}
    for line in dump.splitlines():
        if line[:3] == "-A ":
            chain, _, rule = line[3:].partition(" ")
            rules[chain].append(rule)
        elif line[:1] == ":":
            rules[line[1:].partition(" ")[0]] = []
    return rules


def restore(
    changes: Mapping[str, Iterable[str]], *, family: Family = V4, variant: str | None = None
) -> None:
    """Apply lines to tables, each table in one transaction; nothing else is touched.

    One at a time on a host, by a lock on a file of the runtime directory. iptables-legacy has
    one of its own; iptables-nft begins anew where another process was quicker, and then takes
    a chain that has come to be there for the one that it was told to make, so that of two
    processes that make a chain, and the jump to it, both succeed and the jump is there twice.
    """
    command = f"{family.iptables}{f'-{variant}' if variant else ''}-restore"
    fd = -1
    try:
        fd = _lock_file()
        if fd >= 0:
            runtime_dir.lock(fd)
        run([command, *WAIT, "--noflush"], _script(changes))
    finally:
        runtime_dir.close_file(fd)


def _lock_file() -> int:
    """A descriptor of it; -1 where it cannot be had: then others of ours have none either."""
    try:
        with runtime_dir.opened() as directory:
            return runtime_dir.open_file(directory, _LOCK)
    except NetallocError:
        return -1


def _script(changes: Mapping[str, Iterable[str]]) -> Iterator[str]:
    for table, lines in changes.items():
        yield f"*{table}\n"
        yield from lines
        yield "COMMIT\n"

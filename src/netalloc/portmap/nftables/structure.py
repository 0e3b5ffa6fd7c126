"""The fixed part of the nftables backend: loaded by nft, recognised without it."""

import logging
import shutil
from ipaddress import IPv4Network
from typing import Final

from netalloc.errors import CommandError
from netalloc.host.command import run
from netalloc.host.netlink import NetlinkError
from netalloc.portmap.nftables import fingerprint, ruleset
from netalloc.portmap.nftables.ruleset import Snapshot
from netalloc.portmap.nftables.table import NftTable

logger = logging.getLogger(__name__)

_PROBE: Final = "netalloc-probe"
_ATTEMPTS = 20  # at a table that another program changes while we load it


class Structure:
    """Chains, rules and empty maps of one table, as the bridge and its network want them.

    Raises OutOfRangeError and InUseError for names that cannot be ours.
    """

    def __init__(self, table: NftTable, bridge: str | None, network: IPv4Network | None) -> None:
        self.rules = ruleset.rules(bridge, network)
        self._table = table
        self._script = ruleset.script(table.name, self.rules)
        self._expected: Snapshot | None = None

    def snapshot(self) -> Snapshot:
        """The fixed part as the kernel has it now."""
        return ruleset.snapshot(self._table.netlink, self._table.name)

    def restore(self, before: Snapshot) -> tuple[str, ...]:
        """Load it where it is not as after the last load; what was wrong with `before`."""
        if self._expected is None and before and self._is_as_left(before):
            self._expected = before
        if before == self._expected:
            return ()
        self._expected = self._load()
        return ruleset.differences(before, self._expected, self._table.name)

    def forget(self) -> None:
        """The table goes: what is there next has to be looked at anew."""
        self._expected = None

    def _is_as_left(self, state: Snapshot) -> bool:
        mark = fingerprint.digest(state, self._script)
        return fingerprint.fits(self._table.netlink, self._table.name, mark)

    def _load(self) -> Snapshot:
        name = self._table.name
        for _ in range(_ATTEMPTS):
            try:
                run(["nft", "-f", "-"], self._script)
            except CommandError as error:
                if not self.snapshot():
                    raise
                run(["nft", "-f", "-"], ruleset.script(name, self.rules, replace=True))
                logger.warning("table ip %s was replaced, for it resisted: %s", name, error)
            after = self.snapshot()
            # A rule that another program adds in between must not become what we expect.
            if all(len(after.get(f"rules {c}", ())) == len(r) for c, r in self.rules.items()):
                mark = fingerprint.digest(after, self._script)
                fingerprint.leave(self._table.netlink, name, mark)
                return after
        raise CommandError(f"table ip {name} was changed during {_ATTEMPTS} loads")


def unavailable(name: str | None = None) -> str | None:
    """Why nftables cannot be used here; None when it can, as where table `name` is in use.

    Otherwise it has the kernel load the whole ruleset and drop it in one transaction, which
    needs the nft command, the privilege and every feature the rules use: about 10 ms.
    """
    if name is not None and is_in_use(name):
        return None
    if shutil.which("nft") is None:
        return "command not found: nft is not on PATH"
    text = ruleset.script(_PROBE, ruleset.rules("probe", IPv4Network("192.0.2.0/24")))
    try:
        run(["nft", "-f", "-"], f"{text}delete table ip {_PROBE}\n")
    except CommandError as error:
        return str(error)
    return None


def is_in_use(name: str) -> bool:
    """Whether there is a table of ours by that name; false where we may not look."""
    table = NftTable(name)
    try:
        return "chain portmap" in ruleset.snapshot(table.netlink, name)
    except NetlinkError:  # the trial that follows tells why
        return False
    finally:
        table.close()

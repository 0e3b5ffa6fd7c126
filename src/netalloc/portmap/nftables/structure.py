"""The fixed part of the nftables backend: loaded by nft, recognised without it."""

import errno
import logging
import shutil
from typing import Final

from netalloc.errors import CommandError
from netalloc.host.command import run
from netalloc.host.netlink import NetlinkError
from netalloc.portmap.nftables import batch, fingerprint, maps, members, ruleset
from netalloc.portmap.nftables.ruleset import RULES, Snapshot
from netalloc.portmap.nftables.table import NftTable

logger = logging.getLogger(__name__)

_PROBE: Final = "netalloc-probe"
_ATTEMPTS = 20  # at a table that another program changes while we load it


class Structure:
    """Chains, rules, and empty maps and sets of one table: the same for every network in it."""

    def __init__(self, table: NftTable) -> None:
        self._table = table
        self._script = ruleset.script(table.name)
        self._expected: Snapshot | None = None

    def restore(self) -> tuple[str, ...]:
        """Load it where it is not as after the last load; what was wrong."""
        before = self._snapshot()
        if self._expected is None and before and self._is_as_left(before):
            self._expected = before
        if before == self._expected:
            return ()
        self._expected = self._load()
        return ruleset.differences(before, self._expected, self._table.name)

    def _snapshot(self) -> Snapshot:
        return ruleset.snapshot(self._table.netlink, self._table.name)

    def _is_as_left(self, state: Snapshot) -> bool:
        mark = fingerprint.digest(state, self._script)
        return fingerprint.fits(self._table.netlink, self._table.name, mark)

    def _load(self) -> Snapshot:
        name = self._table.name
        for _ in range(_ATTEMPTS):
            try:
                run(["nft", "-f", "-"], self._script)
            except CommandError as error:
                if not self._snapshot():
                    raise
                self._replace(error)
            after = self._snapshot()
            # A rule that another program adds in between must not become what we expect.
            if all(len(after.get(f"rules {c}", ())) == len(r) for c, r in RULES.items()):
                self._leave_mark(after)
                return after
        raise CommandError(f"table inet {name} was changed during {_ATTEMPTS} loads")

    def _leave_mark(self, state: Snapshot) -> None:
        mark = fingerprint.digest(state, self._script)
        try:
            fingerprint.leave(self._table.netlink, self._table.name, mark)
        except NetlinkError as error:
            if error.errno != errno.ENOENT:  # the last of its networks left at this moment
                raise

    def _replace(self, error: CommandError) -> None:
        """Make the table anew where it resists, with the elements of all its networks."""
        name, netlink = self._table.name, self._table.netlink
        names = (*members.DECLARATIONS, *maps.MAP_TYPES)
        kept = [step for set_ in names for step in members.copies(netlink, name, set_)]
        run(["nft", "-f", "-"], ruleset.script(name, replace=True))
        logger.warning("table inet %s was replaced, for it resisted: %s", name, error)
        for step in kept:
            self._put_back(step)

    def _put_back(self, step: batch.Step) -> None:
        try:
            batch.send(self._table.netlink, [step])
        except NetlinkError as error:  # of what another program had there under that name
            logger.warning("table inet %s: some elements are lost: %s", self._table.name, error)


def unavailable(name: str | None = None) -> str | None:
    """Why nftables cannot be used here; None when it can, as where table `name` is in use.

    Otherwise it has the kernel load the whole ruleset and drop it in one transaction, which
    needs the nft command, the privilege and every feature the rules use: about 10 ms.
    """
    if name is not None and is_in_use(name):
        return None
    if shutil.which("nft") is None:
        return "command not found: nft is not on PATH"
    try:
        run(["nft", "-f", "-"], f"{ruleset.script(_PROBE)}delete table inet {_PROBE}\n")
    except CommandError as error:
        return str(error)
    return None


def is_in_use(name: str) -> bool:
    """Whether there is a table of ours by that name; false where we may not look."""
    table = NftTable(name)
    try:
        return ruleset.is_ours(table.netlink, name)
    except NetlinkError:  # the trial that follows tells why
        return False
    finally:
        table.close()

"""The nftables backend: one table for all networks of a host, a map element for each mapping.

A packet costs the same with 1 and with 16,000 mappings, with 1 and with 100 networks, and so
does a change: the fixed part is a text that nft loads once, a network and a mapping are
elements that go by netlink over a socket that is kept.
"""

import errno
import logging
from collections.abc import Collection, Sequence
from threading import RLock
from typing import Final

from netalloc.errors import (
    CommandError,
    InUseError,
    NetallocError,
    NotAllocatedError,
    OutOfRangeError,
)
from netalloc.family import NO_NETWORK, Family, NetworkPair
from netalloc.host.netlink import NetlinkError, explaining
from netalloc.host.netns import HomeNamespace
from netalloc.host.rule_monitor import RuleMonitor
from netalloc.locks import locked
from netalloc.model import PortMapping, ReconcileResult
from netalloc.portmap.link import NO_LINK, Link
from netalloc.portmap.link_settings import settings_of
from netalloc.portmap.nftables import batch, elements, maps, ruleset, single
from netalloc.portmap.nftables.changes import PRESENT, Changes
from netalloc.portmap.nftables.earlier import Earlier
from netalloc.portmap.nftables.guard import Guard
from netalloc.portmap.nftables.guard_rules import CHANGING, GUARD
from netalloc.portmap.nftables.members import Member
from netalloc.portmap.nftables.ownership import Ownership
from netalloc.portmap.nftables.register import Register
from netalloc.portmap.nftables.repair import describe_foreign, repair
from netalloc.portmap.nftables.structure import Structure
from netalloc.portmap.nftables.table import NftTable

logger = logging.getLogger(__name__)

HOST_TABLE: Final = "netalloc-networks"  # of the managers: all networks of the host's store
_MOVED: Final = (errno.ENOENT, *PRESENT)
_ATTEMPTS = 20  # at a moving target, before another program is to blame


class Nftables:
    """Mappings as elements of the maps in table `inet NAME`, which many networks share.

    A mapping is ours where it leads into our network; what leads elsewhere is seen and touched
    by its own network alone. Without a network, ours is what leads into none of the table's.
    With a bridge the containers behind it also reach the outside, each other through the
    host's ports, and the host reaches them from 127.0.0.1; with neither bridge nor group it
    translates destinations and nothing else. Where an element of its own and a block cover the
    same port, the single one wins, as the host address does.

    With an `owner` it is a network of that name, in the table that all managers of a host
    share: what their store knows nothing of makes room. Otherwise networks that overlap refuse
    each other.

    The socket belongs to the network namespace of the first call. Safe for threads.
    Raises OutOfRangeError and InUseError for names that cannot be ours.
    """

    def __init__(
        self,
        name: str = "netalloc",
        *,
        link: Link = NO_LINK,
        networks: NetworkPair = NO_NETWORK,
        owner: str = "",
        services: tuple[str, ...] = (),
    ) -> None:
        self.table = ruleset.check_table(name)
        if (name == HOST_TABLE) != bool(owner):
            raise InUseError(f"nftables table {name} belongs to the managers of networks", name)
        link = link.checked()
        me = Member.of(link, networks, owner)
        self._table = NftTable(name)
        self._structure = Structure(self._table)
        self._changes = Changes(self._table)
        self._adding = single.adding(name)
        self._asking, self._removing = single.asking(name), single.removing(name)
        self._register = Register(self._table, me, self._emptying)
        self._own = Ownership(me)
        settings = f"nftables {owner or f'{name} {networks.v4 or networks.v6}'}"
        self._settings = settings_of(link, settings, networks)
        self._earlier = Earlier(self._table, owner or name, link.bridge, settings)
        socket = self._table.socket
        self.guard = Guard(link, owner, services, name, socket) if owner else None
        self._home = HomeNamespace()
        self._explaining = explaining(f"table inet {name}")
        self._lock = RLock()

    @property
    def name(self) -> str:
        """The backend's own name."""
        return "nftables"

    def monitor(self) -> RuleMonitor:
        """Tells when another program changes our table; CommandError without the privilege."""
        self._home.check()
        with explaining(f"watching table inet {self.table}"):
            own, tables, families = [self._table.netlink.portid], [self.table], [1, 2]
            if self.guard is not None and self.guard.is_guarded:
                tables.append(GUARD)
                families.append(7)
            return RuleMonitor(
                tables,
                own=own,
                watched=self._settings.watched(),
                maps=[*maps.MAP_TYPES, *CHANGING],
                families=families,
            )

    @locked
    def is_there(self) -> bool:
        """Whether a table has something of ours; false where we may not look."""
        try:
            return self._register.is_known() or self._earlier.is_there()
        except NetlinkError:
            return False

    @locked
    def setup(self) -> None:
        """Make the table if there is none, and join it; a predecessor's elements stay.

        The first network of a table costs the start of nft, each further one a transaction;
        where all is there as it should be, a fifth of a millisecond, however many there are.
        Raises InterfaceError when there is no such bridge, InUseError for a network that
        overlaps another one of the table, CommandError when nft fails; then nothing of a
        network that was not there before remains.
        """
        with self._explaining:
            self._home.check()
            before = self._register.is_joined()
            try:
                self._restore()
                self._earlier.take_over(self._own)
            except BaseException:
                if not before:
                    self._undo_setup()
                raise

    @locked
    def cleanup(self) -> None:
        """Remove our own from the table, and the table with its last network; none is no error."""
        with self._explaining:
            self._home.check()
            self._settings.withdraw()
            self._register.leave()
            self._earlier.remove()
            if self.guard is not None:
                self.guard.cleanup()

    def _undo_setup(self) -> None:
        try:
            if self._register.is_joined():
                self.cleanup()
            else:  # refused, before the settings were touched
                self._register.remove_empty()
        except NetallocError as error:
            logger.warning("what a failed set-up made stays, in part: %s", error)

    @locked
    def close(self) -> None:
        """Close the socket; the rules stay, and the next call opens another one."""
        self._table.close()

    def apply(self, add: Sequence[PortMapping], remove: Sequence[PortMapping] = ()) -> None:
        """Remove, then add, in one transaction.

        Raises InUseError where a key to add is present, NotAllocatedError where a mapping
        to remove is not there as given, OutOfRangeError for one that leads out of our network.
        The kernel itself checks that it is the very same: a late removal never takes away the
        mapping of the key's next owner.
        """
        if len(add) + len(remove) == 1 and self._apply_one(add, remove):
            return
        self._apply(add, remove)

    def _apply_one(self, add: Sequence[PortMapping], remove: Sequence[PortMapping]) -> bool:
        """Add or remove one mapping by the shortest way: a fifth of the time of the general one.

        False where that does not apply, or where something else is present, which the general
        way explains.
        """
        (mapping,) = add or remove
        if mapping.count != 1 or not self._own.has(mapping):
            return False
        try:
            netlink = self._table.socket.get()
            if add:
                netlink.transact_one(self._adding, mapping)
                return True
            map_, entry = what = single.entry(mapping)
            found: dict[bytes, bytes] = {}
            elements.listed(netlink.ask_one(self._asking, what), map_, found)
            if elements.mark_of(found.get(entry, b"")):
                return False  # it is a part of a shifted block
            netlink.transact_one(self._removing, what)
        except NetlinkError as error:
            if not error.seq:  # of the socket itself: whether it was made is not known
                raise error.explained(self._explaining.what) from error
            return False
        return True

    @locked
    def _apply(self, add: Sequence[PortMapping], remove: Sequence[PortMapping]) -> None:
        with self._explaining:
            self._own.check(add)
            try:
                self._own.check(remove)
            except OutOfRangeError as error:
                raise NotAllocatedError(f"not mapped: {error}") from None
            self._changes.apply(add, remove)

    @locked
    def mappings(self) -> list[PortMapping]:
        """What the kernel has of ours; elements that are no mapping are logged and left out.

        O(mappings of all networks of the table), which the kernel lists together.
        """
        with self._explaining:
            self._look_around()
            listing = self._table.list(self._own.families)
        return self._decoded(listing)

    @locked
    def reconcile(self, desired: Collection[PortMapping]) -> ReconcileResult:
        """Bring table, settings and our own elements to what they should be, and nothing else.

        What leads into no network of the table, or is no mapping at all, goes only where it is
        in the way. Raises InUseError where an element of another network is in the way of a
        desired one, CommandError when another program changes the same elements all the time.
        With nothing to do it costs a listing of all networks' elements and a microsecond for
        each desired mapping.
        """
        with self._explaining:
            return self._reconcile(desired)

    def _reconcile(self, desired: Collection[PortMapping]) -> ReconcileResult:
        self._home.check()
        wanted = elements.entries(desired)
        structure: tuple[str, ...] = ()
        for _ in range(_ATTEMPTS):
            structure += self._restore()
            found = self._table.list(self._own.families)
            try:
                done = repair(self.table, wanted, found, self._own, self._displaces)
                self._send(done.steps)
            except NetlinkError as error:
                # Another program changed an element between our listing and our transaction,
                # of which nothing has happened: look again.
                if error.errno not in _MOVED:
                    raise
            else:
                wrong = structure + tuple(done.foreign)
                return ReconcileResult(tuple(done.added), tuple(done.removed), wrong)
        raise CommandError(f"table inet {self.table} was changed during {_ATTEMPTS} repairs")

    def _send(self, steps: list[batch.Step]) -> None:
        netlink = self._table.netlink
        if steps and netlink.can_send(batch.size(steps)):
            batch.send(netlink, steps)
            return
        for step in steps:  # each is right by itself, and the next repair goes on from there
            batch.send(netlink, [step])

    def _restore(self) -> tuple[str, ...]:
        """Bring settings, fixed part and our place in it to what they should be; what was wrong.

        Raises InterfaceError while nothing has changed.
        """
        self._settings.check()
        found: tuple[str, ...] = ()
        for _ in range(_ATTEMPTS):
            found += self._structure.restore()
            lacking = self._joined()
            if lacking is not None:
                self._look_around()
                found += lacking + self._settings.restore()
                found += self._register.reach(loopback=self._settings.loopback6)
                return found if self.guard is None else found + self.guard.setup()
        raise CommandError(f"table inet {self.table} went away during {_ATTEMPTS} set-ups")

    def _joined(self) -> tuple[str, ...] | None:
        """What we had to put in; None where the last of the table has just taken it away."""
        try:
            return self._register.join()
        except NetlinkError as error:
            if error.errno != errno.ENOENT:
                raise
            return None

    def _look_around(self) -> None:
        """Without a network, what is ours depends on the others."""
        if not self._register.me[0].last:
            self._own = Ownership(self._register.me, self._register.others())

    def _displaces(self, family: Family, address: int) -> bool:
        """Whether an element that leads there makes room for a desired one of ours.

        The desired ones of a manager are those of the host's one truth.
        """
        if self._register.owner:
            return True
        return not any(
            other.last and other.family is family and other.first <= address <= other.last
            for other in self._register.others()
        )

    def _emptying(self, gone: Member, stay: Sequence[Member]) -> list[batch.Step]:
        """The steps that take away what leads into a network, and into none of those that stay."""
        leaving = Ownership([gone], stay)
        return batch.deletions(
            self.table,
            {
                name: leaving.of(present, maps.MAP_TYPES[name])
                for name, present in self._table.list(leaving.families).items()
            },
        )

    def _decoded(self, listing: dict[str, dict[bytes, bytes]]) -> list[PortMapping]:
        found: list[PortMapping] = []
        for name, entries in listing.items():
            map_ = maps.MAP_TYPES[name]
            own = self._own.of(entries, map_)
            ours = entries
            if len(own) < len(entries):
                ours = {entry: rest for entry, rest in entries.items() if entry in own}
            for entry in elements.decode_all(ours, map_, found):
                logger.warning("table inet %s: %s", self.table, describe_foreign(name, entry))
        return found

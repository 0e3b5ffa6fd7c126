"""Who is in a table: joining, and leaving as the last one who takes the table away.

Two that come or go at once look first and change then. The change says which generation of the
tables it was concluded from, and the kernel refuses it when there has been another since: so
nothing can come in between, neither a thread nor a process nor a kill.
"""

import errno
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from netalloc.errors import CommandError, InterfaceError, InUseError
from netalloc.family import FAMILIES, V4
from netalloc.host.links import index_of
from netalloc.host.netlink import NetlinkError
from netalloc.portmap.nftables import batch, elements, members, ruleset
from netalloc.portmap.nftables.batch import Step
from netalloc.portmap.nftables.members import (
    BRIDGES,
    GATEWAYS,
    LOOPBACK6,
    NETWORKS,
    ROUTED,
    SUBNETS,
    Element,
    Member,
)
from netalloc.portmap.nftables.table import NftTable

logger = logging.getLogger(__name__)

_ATTEMPTS: Final = 200  # where all tables of the host together change all the time

# The steps that take away what leads into the first network, and into none of the others.
Doomed = dict[str, dict[bytes, None]]  # of each set: the entries that go
Emptying = Callable[[Member, Sequence[Member]], list[Step]]


class Register:
    """A network's place in a table; `me` are its subnets, one or one of each family.

    One with an `owner` is of a store that is the one truth of the host: what it finds there
    beside its own is of a store that is gone, and makes room. Others refuse to overlap.
    """

    def __init__(self, table: NftTable, me: Sequence[Member], emptying: Emptying) -> None:
        self.me = me
        self.owner = me[0].owner
        self._has_looked = False  # for what a predecessor had
        self._table = table
        self._emptying = emptying

    def join(self) -> tuple[str, ...]:
        """Put in what is missing of our own; what that was. In place already: three look-ups.

        Raises InUseError for another network that overlaps, NetlinkError (ENOENT) where the
        table is missing.
        """
        wanted = self._wanted()
        lacking = [name for name, pair in wanted.items() if not self._has(name, *pair)]
        if not lacking and not self._had_more():
            return ()
        self._attempt(lambda: self._joining(wanted))
        self._has_looked = True
        return tuple(f"set {name} lacked {self}" for name in lacking)

    def _had_more(self) -> bool:
        """Whether there is a subnet of our owner's of a family that we have none of; once."""
        if self._has_looked or not self.owner:
            return False
        self._has_looked = True
        mine = {one.family for one in self.me}
        return any(
            other.owner == self.owner
            for family in FAMILIES
            if family not in mine
            for other in members.near(self._dump(NETWORKS[family]), self.me, family).values()
        )

    def reach(self, *, loopback: bool) -> tuple[str, ...]:
        """Say whether the host reaches our containers from ::1; what was said otherwise."""
        found: tuple[str, ...] = ()
        for one in self.me:
            if one.family is V4 or one.place is None or not one.last:
                continue
            if self._has(LOOPBACK6, one.subnet) != loopback:
                self._attempt(partial(self._reaching, one, loopback=loopback))
                found += (f"set {LOOPBACK6} {'lacked' if loopback else 'had'} {one}",)
        return found

    def _reaching(self, one: Member, *, loopback: bool) -> list[Step]:
        table = self._table.name
        there = self._ask(LOOPBACK6, one.subnet)
        if loopback:
            gone = [] if there in (None, Element(one.subnet, one.owner)) else [there.entry]
            steps = members.deletion(table, LOOPBACK6, gone)
            return [*steps, members.addition(table, LOOPBACK6, one.subnet, one.owner)]
        return members.deletion(table, LOOPBACK6, [] if there is None else [there.entry])

    def _wanted(self) -> members.Wanted:
        index = _index(self.me[0].bridge)
        return {name: pair for one in self.me for name, pair in one.wanted(index).items()}

    def __str__(self) -> str:
        return " and ".join(map(str, self.me))

    def leave(self) -> None:
        """Take out our own with all that leads there; with the last one goes the table."""
        self._attempt(self._leaving)

    def remove_empty(self) -> None:
        """Take away a table that has no network."""
        self._attempt(lambda: [] if self._members() else self._end())

    def is_joined(self) -> bool:
        """Whether the register has us."""
        return all(self._has(*one.register, one.owner) for one in self.me)

    def is_known(self) -> bool:
        """Whether it has us in any form, as on another bridge; O(networks)."""
        return any(self._is_me(one) for one in self._members().values())

    def others(self) -> list[Member]:
        """All networks of the table but our own."""
        return [other for other in self._members().values() if not self._is_me(other)]

    def _attempt(self, conclusion: Callable[[], list[Step]]) -> None:
        netlink = self._table.netlink
        for _ in range(_ATTEMPTS):
            seen = batch.generation(netlink)
            steps = conclusion()
            if not steps:
                return
            try:
                if netlink.can_send(batch.size(steps)):
                    batch.send(netlink, steps, seen)
                    return
                for step in steps:  # piece by piece what leads there, and the rest in one
                    if step.entries:
                        batch.send(netlink, [step])
            except NetlinkError as error:
                if error.errno != errno.ERESTART and not (
                    error.errno == errno.ENOENT and batch.generation(netlink) != seen
                ):
                    raise
        raise CommandError(f"tables changed during {_ATTEMPTS} attempts at {self._table.name}")

    def _joining(self, wanted: members.Wanted) -> list[Step]:
        table = self._table.name
        stale = self._stale()
        stay: list[Member] = [*self.me]
        if stale:
            stay += [one for entry, one in self._members().items() if entry not in stale]
        steps: list[Step] = []
        doomed: Doomed = {}
        for entry, other in stale.items():
            if not self._is_me(other):
                what = self._table.name, other, self
                logger.warning("table %s: network %s, of another store, makes room for %s", *what)
            steps += self._emptying(other, stay)
            self._doom(doomed, entry, other, stay)
        for name, (entry, comment) in wanted.items():
            there = self._ask(name, entry)
            if there is not None and there != Element(entry, comment):
                # Of a network that makes room, or another program's.
                doomed.setdefault(name, {})[there.entry] = None
        steps += self._deletions(doomed)
        for name, (entry, comment) in wanted.items():
            steps.append(members.addition(table, name, entry, comment))
        return steps

    def _stale(self) -> dict[bytes, Member]:
        """Those in the register that go because we come."""
        mine = {one.register[1] for one in self.me}
        return {
            entry: other
            for family in FAMILIES
            for entry, other in members.near(self._dump(NETWORKS[family]), self.me, family).items()
            if entry not in mine and self._is_near(other) and self._makes_room(other)
        }

    def _is_near(self, other: Member) -> bool:
        overlaps = any(one.overlaps(other) for one in self.me)
        return overlaps or (self.owner != "" and other.owner == self.owner)

    def _makes_room(self, other: Member) -> bool:
        """Whether one that overlaps goes because we come; InUseError where we may not say so."""
        if self.owner:
            return True
        if not self._is_me(other):
            raise InUseError(
                f"network {self} overlaps {other}, which table inet {self._table.name} "
                "serves: another name makes another table",
                other.owner or None,
            )
        return True

    def _leaving(self) -> list[Step]:
        registered = self._members()
        mine = {entry: one for entry, one in registered.items() if self._is_me(one)}
        others = [one for entry, one in registered.items() if entry not in mine]
        if not others:
            return self._end()
        doomed: Doomed = {}
        for entry, one in mine.items():
            self._doom(doomed, entry, one, others)
        steps = [step for one in self.me for step in self._emptying(one, others)]
        return steps + self._deletions(doomed)

    def _end(self) -> list[Step]:
        name = self._table.name
        return (
            [ruleset.table_deletion(name)] if ruleset.has_table(self._table.netlink, name) else []
        )

    def _doom(self, doomed: Doomed, entry: bytes, gone: Member, stay: Sequence[Member]) -> None:
        """Note what of the sets goes with a network; what others need as well stays."""
        doomed.setdefault(NETWORKS[gone.family], {})[entry] = None
        if gone.place is not None and gone.last:
            sets = [SUBNETS[gone.family], *([] if gone.family is V4 else [LOOPBACK6])]
            for name in sets:
                if self._has(name, gone.subnet):
                    doomed.setdefault(name, {})[gone.subnet] = None
        if gone.group and all(other.group != gone.group for other in stay):
            for name in (ROUTED, *GATEWAYS.values()):
                there = self._ask(name, gone.routed)
                if there is not None:
                    doomed.setdefault(name, {})[there.entry] = None
        if gone.bridge is not None and all(other.bridge != gone.bridge for other in stay):
            named = members.commented(self._dump(BRIDGES), gone.bridge)
            doomed.setdefault(BRIDGES, {}).update(dict.fromkeys(named))

    def _deletions(self, doomed: Doomed) -> list[Step]:
        table = self._table.name
        return [
            step
            for name, entries in doomed.items()
            for step in members.deletion(table, name, entries)
        ]

    def _is_me(self, other: Member) -> bool:
        """Whether it is a predecessor's: of our name, or of our subnet where its bridge is gone."""
        if self.owner or other.owner:
            return other.owner == self.owner
        where = other.family, other.first, other.last
        if all((one.family, one.first, one.last) != where for one in self.me):
            return False
        if other.place in (None, self.me[0].place):
            return True
        return other.bridge is not None and _index(other.bridge) is None

    def _members(self) -> dict[bytes, Member]:
        found: dict[bytes, Member] = {}
        for family in FAMILIES:
            found |= members.registered(self._dump(NETWORKS[family]), family)
        return found

    def _dump(self, name: str) -> list[bytes]:
        try:
            bodies, _ = self._table.netlink.dump(
                batch.GET_ELEMENT, elements.head(self._table.name, name)
            )
        except NetlinkError as error:
            if error.errno != errno.ENOENT:
                raise
            return []
        return bodies

    def _ask(self, name: str, entry: bytes) -> Element | None:
        question = members.question(self._table.name, name, entry)
        try:
            (found,) = members.listed(self._table.netlink.call(batch.GET_ELEMENT, question))
        except NetlinkError as error:
            if error.errno != errno.ENOENT:
                raise
            return None
        return found

    def _has(self, name: str, entry: bytes, comment: str | None = None) -> bool:
        there = self._ask(name, entry)
        return there is not None and there.entry == entry and comment in (None, there.comment)


def _index(bridge: str | None) -> int | None:
    if bridge is None:
        return None
    try:
        return index_of(bridge)
    except InterfaceError:
        return None

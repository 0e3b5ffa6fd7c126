"""The nftables backend: one table, a map element for each mapping.

A packet costs the same with 1 and with 16,000 mappings, and so does a change: the fixed
part is a text that nft loads once, the elements go by netlink over a socket that is kept.
"""

import errno
import logging
import sys
from collections.abc import Collection, Iterator, Sequence
from ipaddress import IPv4Network
from threading import RLock
from typing import Final, NoReturn

from netalloc.errors import (
    CommandError,
    InUseError,
    NetallocError,
    NotAllocatedError,
)
from netalloc.host.links import check_name
from netalloc.host.netlink import EXCLUSIVE, NetlinkError, NetlinkSocket, explaining
from netalloc.host.netns import HomeNamespace
from netalloc.host.rule_monitor import RuleMonitor
from netalloc.model import PortMapping, ReconcileResult
from netalloc.portmap.bridge_settings import BridgeSettings
from netalloc.portmap.desired import describe
from netalloc.portmap.nftables import batch, elements, ruleset
from netalloc.portmap.nftables.structure import Structure
from netalloc.portmap.nftables.table import NftTable, overlap

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

logger = logging.getLogger(__name__)

_PRESENT: Final = (errno.EEXIST, errno.EBUSY)  # the key is there; kernels differ in the word
_MOVED: Final = (errno.ENOENT, *_PRESENT)
_ATTEMPTS = 20  # at a moving target, before another program is to blame


class Nftables:
    """Mappings as elements of the maps in table `ip NAME`.

    With a bridge and its network the containers behind it also reach the outside, each
    other through the host's ports, and the host reaches them from 127.0.0.1; with
    bridge=None it translates destinations and nothing else. Where an element of its own
    and a block cover the same port, the single one wins, as the host address does.

    The socket belongs to the network namespace of the first call. Safe for threads.
    Raises OutOfRangeError and InUseError for names that cannot be ours.
    """

    def __init__(
        self,
        name: str = "netalloc",
        *,
        bridge: str | None = None,
        network: IPv4Network | None = None,
    ) -> None:
        self.table = ruleset.check_table(name)
        bridge = None if bridge is None else check_name(bridge, "bridge")
        self._table = NftTable(name)
        self._structure = Structure(self._table, bridge, network)
        self._settings = BridgeSettings(bridge, f"nftables {name}")
        self._home = HomeNamespace()
        self._explaining = explaining(f"table ip {name}")
        self._lock = RLock()

    @property
    def name(self) -> str:
        """The backend's own name."""
        return "nftables"

    def monitor(self) -> RuleMonitor:
        """Tells when another program changes our table; CommandError without the privilege."""
        self._home.check()
        with explaining(f"watching table ip {self.table}"):
            own = [self._netlink.portid]
            return RuleMonitor(
                [self.table],
                own=own,
                ports_of=self._settings.watched(),
                maps=elements.MAP_TYPES,
            )

    def setup(self) -> None:
        """Load the ruleset in one transaction; a predecessor's elements stay and keep working.

        Where all is there as it should be, that costs half a millisecond. Raises
        InterfaceError when there is no such bridge, CommandError when nft fails; then
        nothing of a table that was not there before remains.
        """
        with self._lock, self._explaining:
            self._home.check()
            before = self._structure.snapshot()
            try:
                self._restore_structure(before)
            except BaseException:
                if not before:
                    self._undo_setup()
                raise

    def cleanup(self) -> None:
        """Remove the table with all that is in it; none there is no error."""
        with self._lock, self._explaining:
            self._home.check()
            self._structure.forget()
            self._settings.withdraw()
            try:
                batch.send(self._netlink, [ruleset.table_deletion(self.table)])
            except NetlinkError as error:
                if error.errno != errno.ENOENT:
                    raise

    def _undo_setup(self) -> None:
        try:
            self.cleanup()
        except NetallocError as error:
            logger.warning("what a failed set-up made stays, in part: %s", error)

    def close(self) -> None:
        """Close the socket; the rules stay, and the next call opens another one."""
        with self._lock:
            self._table.close()

    def apply(self, add: Sequence[PortMapping], remove: Sequence[PortMapping] = ()) -> None:
        """Remove, then add, in one transaction.

        Raises InUseError where a key to add is present, NotAllocatedError where a mapping
        to remove is not there as given. The kernel itself checks that it is the very same:
        a late removal never takes away the mapping of the key's next owner.
        """
        if len(add) == 1 and not remove and add[0].count == 1 and self._add_one(add[0]):
            return
        with self._lock, self._explaining:
            held = elements.entries(add)
            gone = elements.entries(remove) if remove else {}
            if remove:
                self._check_present(gone)
            if len(held) > 1:  # not only of the usual kind
                for name in elements.BLOCKS & held.keys():
                    self._check_free(name, held[name], gone.get(name, {}))
            steps = self._changes(held, gone)
            if not steps:
                return
            size = batch.size(steps)
            netlink = self._netlink
            if netlink.can_send(size):
                self._send(netlink, steps, held, gone)
                return
            logger.warning(
                "%d changes of table ip %s take %d bytes and this user namespace allows %d "
                "in a transaction (net.core.wmem_max): they go in pieces, and a crash "
                "between two pieces leaves the first ones done",
                len(add) + len(remove), self.table, size, netlink.max_message,
            )  # fmt: skip
            self._apply_in_pieces(add, remove)

    def _add_one(self, mapping: PortMapping) -> bool:
        """Add one mapping by the shortest way: a third of the time of the general one.

        False where that does not apply, or the kernel refuses, which the general way explains.
        """
        with self._lock:
            try:
                batch.send_one(self._netlink, self.table, mapping)
            except NetlinkError:
                return False
        return True

    def mappings(self) -> list[PortMapping]:
        """What the kernel has now; elements that are no mapping are logged and left out."""
        with self._lock, self._explaining:
            listing = self._table.list()
        found: list[PortMapping] = []
        for name, entries in listing.items():
            foreign = elements.decode_all(entries, elements.MAP_TYPES[name], found)
            for entry in foreign:
                logger.warning("table ip %s: %s", self.table, _foreign(name, entry))
        return found

    def reconcile(self, desired: Collection[PortMapping]) -> ReconcileResult:
        """Bring ruleset, settings and elements to what they should be, touching what differs.

        Raises CommandError when another program changes the same elements all the time.
        With nothing to do it costs a listing and a microsecond for each desired mapping.
        """
        wanted = elements.entries(desired)
        structure: tuple[str, ...] = ()
        with self._lock, self._explaining:
            self._home.check()
            for _ in range(_ATTEMPTS):
                structure += self._restore_structure(self._structure.snapshot())
                try:
                    added, removed, foreign = self._repair(wanted)
                except NetlinkError as error:
                    # Another program changed an element between our listing and our transaction,
                    # of which nothing has happened: look again.
                    if error.errno not in _MOVED:
                        raise
                else:
                    return ReconcileResult(tuple(added), tuple(removed), structure + tuple(foreign))
        raise CommandError(f"table ip {self.table} was changed during {_ATTEMPTS} repairs")

    @property
    def _netlink(self) -> NetlinkSocket:
        return self._table.netlink

    def _restore_structure(self, before: ruleset.Snapshot) -> tuple[str, ...]:
        """Bring the settings and the fixed part to what they should be; what was wrong."""
        # Raises InterfaceError while nothing has changed.
        found = self._settings.restore()
        return self._structure.restore(before) + found

    def _repair(
        self, wanted: elements.Held
    ) -> tuple[list[PortMapping], list[PortMapping], list[str]]:
        add: elements.Held = {}
        extra: dict[str, set[bytes]] = {}
        removed: list[PortMapping] = []
        foreign: list[str] = []
        for name, present in self._table.list().items():
            held = wanted.get(name, {})
            wrong = _wrongly_marked(held, present)
            if held.keys() == present.keys() and not wrong:
                continue
            add[name] = {e: m for e, m in held.items() if e not in present or e in wrong}
            extra[name] = (present.keys() - held.keys()) | wrong
            gone = {entry: present[entry] for entry in extra[name]}
            unknown = elements.decode_all(gone, elements.MAP_TYPES[name], removed)
            foreign += [_foreign(name, entry) for entry in unknown]
        steps = batch.deletions(self.table, extra) + batch.additions(self.table, add)
        if steps and self._netlink.can_send(batch.size(steps)):
            batch.send(self._netlink, steps)
        else:
            for step in steps:  # each is right by itself, and the next repair goes on from there
                batch.send(self._netlink, [step])
        added = dict.fromkeys(m for held in add.values() for m in held.values())
        return list(added), removed, foreign

    def _send(
        self,
        netlink: NetlinkSocket,
        steps: Sequence[batch.Step],
        add: elements.Held,
        remove: elements.Held,
    ) -> None:
        try:
            batch.send(netlink, steps)
        except batch.RefusedError as error:
            step = error.step
            removing = step is not None and not step.flags & EXCLUSIVE
            if error.errno == errno.ENOENT and not removing:
                raise CommandError(
                    f"table ip {self.table} or part of it is missing: setup or reconcile makes it",
                    status=error.errno,
                ) from error
            if error.errno not in _PRESENT or step is None:
                raise
            held = remove if removing else add
            if error.entry is not None:
                self._refuse(_find(held, error.entry), removing=removing)
            # Before Linux 5.13 the kernel does not say which one it is about.
            for mapping in [_find(held, entry) for entry in step.entries]:
                there = self._table.holder(mapping)
                if there is not None and not (removing and there == mapping):
                    self._refuse(mapping, removing=removing)
            raise InUseError("a port stands twice in one batch, or was mapped until now") from error

    def _refuse(self, mapping: PortMapping, *, removing: bool) -> NoReturn:
        """Raise what a key that leads elsewhere amounts to, naming what is there."""
        there = self._table.holder(mapping)
        if not removing:
            _refuse_addition(mapping, there)
        found = f"it leads to {describe(there)}" if there else "there is none such"
        raise NotAllocatedError(f"{describe(mapping)} is not mapped: {found}")

    def _check_present(self, remove: elements.Held) -> None:
        for name, entries in remove.items():
            present = self._table.look_up(elements.MAP_TYPES[name], list(entries))
            for entry, mapping in entries.items():
                if entry not in present or elements.mark_of(present[entry]) != elements.mark(
                    mapping
                ):
                    self._refuse(mapping, removing=True)

    def _check_free(
        self, name: str, add: dict[bytes, PortMapping], remove: Collection[bytes]
    ) -> None:
        """Refuse blocks that overlap others.

        The kernel itself refuses a block that starts or ends within another, but not one
        that encloses it.
        """
        map_ = elements.MAP_TYPES[name]
        present = [
            there
            for entry, rest in self._table.list_map(map_).items()
            if entry not in remove and (there := elements.decode(entry, rest, map_))
        ]
        for mapping in add.values():
            for there in present:
                if overlap(mapping, there):
                    _refuse_addition(mapping, there)
            present.append(mapping)

    def _apply_in_pieces(self, add: Sequence[PortMapping], remove: Sequence[PortMapping]) -> None:
        done: list[tuple[elements.Held, elements.Held]] = []
        try:
            for held, gone, steps in self._pieces(add, remove):
                self._send(self._netlink, steps, held, gone)
                done.append((held, gone))
        except NetallocError as error:
            try:
                for held, gone in reversed(done):
                    batch.send(self._netlink, self._changes(gone, held))
            except NetallocError as second:
                raise ExceptionGroup(
                    "a batch failed, and so did its undoing", [error, second]
                ) from None
            raise

    def _pieces(
        self, add: Sequence[PortMapping], remove: Sequence[PortMapping]
    ) -> Iterator[tuple[elements.Held, elements.Held, list[batch.Step]]]:
        held, gone = elements.entries(add), elements.entries(remove)
        steps = self._changes(held, gone)
        if self._netlink.can_send(batch.size(steps)):
            yield held, gone, steps
        elif len(add) + len(remove) == 1:
            raise CommandError(
                f"{describe([*add, *remove][0])} takes {batch.size(steps)} bytes, and this user "
                f"namespace allows {self._netlink.max_message} (net.core.wmem_max)"
            )
        elif add and remove:
            yield from self._pieces((), remove)
            yield from self._pieces(add, ())
        else:
            half, rest = len(add) // 2, len(remove) // 2
            yield from self._pieces(add[:half], remove[:rest])
            yield from self._pieces(add[half:], remove[rest:])

    def _changes(self, add: elements.Held, remove: elements.Held) -> list[batch.Step]:
        steps = batch.additions(self.table, add)
        return [*batch.removals(self.table, remove), *steps] if remove else steps


def _find(held: elements.Held, entry: bytes) -> PortMapping:
    return next(mappings[entry] for mappings in held.values() if entry in mappings)


def _refuse_addition(mapping: PortMapping, there: PortMapping | None) -> NoReturn:
    found = "it stands twice in one batch, or was there a moment ago"
    if there is not None:
        found = f"it leads to {describe(there)}"
    holder = None if there is None else there.owner or str(there.dest[0])
    raise InUseError(f"{describe(mapping)} cannot be mapped: {found}", holder)


def _wrongly_marked(held: dict[bytes, PortMapping], present: dict[bytes, bytes]) -> set[bytes]:
    """The entries that lead where they should and are no part, or one, of a shifted block."""
    suspects = {entry for entry, rest in present.items() if rest and elements.mark_of(rest)}
    suspects.update([entry for entry, mapping in held.items() if mapping.count > 1])
    return {
        entry
        for entry in suspects
        if entry in held
        and entry in present
        and elements.mark(held[entry]) != elements.mark_of(present[entry])
    }


def _foreign(name: str, entry: bytes) -> str:
    return f"map {name} held {entry.hex()}, which is no whole mapping"

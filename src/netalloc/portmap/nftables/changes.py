"""Batches of mappings as transactions, and what a refusal of the kernel amounts to."""

import errno
import logging
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final, NoReturn

from netalloc.errors import CommandError, InUseError, NetallocError, NotAllocatedError
from netalloc.host.netlink import NetlinkError
from netalloc.host.netlink_messages import EXCLUSIVE
from netalloc.model import PortMapping
from netalloc.portmap.desired import describe
from netalloc.portmap.nftables import batch, elements, maps
from netalloc.portmap.nftables.table import NftTable, overlap

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

logger = logging.getLogger(__name__)

PRESENT: Final = (errno.EEXIST, errno.EBUSY)  # the key is there; kernels differ in the word
_ATTEMPTS = 50  # at blocks, while any table of the host changes


class Changes:
    """Adds and removes elements of one table: a batch as a whole, or nothing of it."""

    def __init__(self, table: NftTable) -> None:
        self._table = table

    def apply(self, add: Sequence[PortMapping], remove: Sequence[PortMapping]) -> None:
        """Remove, then add; see Nftables.apply."""
        held = elements.entries(add)
        gone = elements.entries(remove) if remove else {}
        if remove:
            self._check_present(gone)
        steps = self.steps(held, gone)
        if not steps:
            return
        size = batch.size(steps)
        netlink = self._table.netlink
        if netlink.can_send(size):
            blocks = [mapping for mapping in add if mapping.count > 1]
            if blocks:
                self._send_blocks(blocks, steps, held, gone)
            else:
                self._send(steps, held, gone)
            return
        logger.warning(
            "%d changes of table inet %s take %d bytes and this user namespace allows %d "
            "in a transaction (net.core.wmem_max): they go in pieces, and a crash "
            "between two pieces leaves the first ones done",
            len(add) + len(remove), self._table.name, size, netlink.max_message,
        )  # fmt: skip
        self._check_free([mapping for mapping in add if mapping.count > 1], gone)
        self._apply_in_pieces(add, remove)

    def steps(self, add: elements.Held, remove: elements.Held) -> list[batch.Step]:
        """The steps that remove, then add."""
        steps = batch.additions(self._table.name, add)
        return [*batch.removals(self._table.name, remove), *steps] if remove else steps

    def _send_blocks(
        self,
        blocks: Sequence[PortMapping],
        steps: Sequence[batch.Step],
        held: elements.Held,
        gone: elements.Held,
    ) -> None:
        """Send what has blocks in it, as long as none has come in between that one encloses."""
        for _ in range(_ATTEMPTS):
            seen = batch.generation(self._table.netlink)
            self._check_free(blocks, gone)
            try:
                return self._send(steps, held, gone, seen)
            except NetlinkError as error:
                if error.errno != errno.ERESTART:
                    raise
        raise CommandError(
            f"tables changed during {_ATTEMPTS} attempts at a block of table {self._table.name}"
        )

    def _send(
        self,
        steps: Sequence[batch.Step],
        add: elements.Held,
        remove: elements.Held,
        seen: int | None = None,
    ) -> None:
        try:
            batch.send(self._table.netlink, steps, seen)
        except batch.RefusedError as error:
            step = error.step
            removing = step is not None and not step.flags & EXCLUSIVE
            if error.errno == errno.ENOENT and not removing:
                raise CommandError(
                    f"table inet {self._table.name} or part of it is missing: setup or "
                    "reconcile makes it",
                    status=error.errno,
                ) from error
            if error.errno not in PRESENT or step is None:
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
            present = self._table.look_up(maps.MAP_TYPES[name], list(entries))
            for entry, mapping in entries.items():
                if entry not in present or elements.mark_of(present[entry]) != elements.mark(
                    mapping
                ):
                    self._refuse(mapping, removing=True)

    def _check_free(self, blocks: Sequence[PortMapping], remove: elements.Held) -> None:
        """Refuse blocks that overlap others where the kernel does not; O(their ports).

        It knows nothing of two maps, and takes an interval that encloses another. Of what is not
        smaller than a block one of its ends is within it, or it is around them; an interval has
        two ports at least, so that of the others every second port is asked for.
        """
        order = sorted(blocks, key=lambda block: (str(block.key[:2]), block.host_port))
        for before, mapping in pairwise(order):
            if overlap(before, mapping):
                _refuse_addition(mapping, before)
        for mapping in order:
            single, interval = maps.map_types_at(mapping)
            if maps.divided(mapping):
                self._check_ports(mapping, mapping.ports[:: mapping.count - 1], interval, remove)
            else:
                self._check_ports(mapping, mapping.ports[::2], interval, remove)
                self._check_ports(mapping, mapping.ports, single, remove)

    def _check_ports(
        self,
        mapping: PortMapping,
        ports: Sequence[int],
        map_: maps.MapType,
        remove: elements.Held,
    ) -> None:
        gone = remove.get(map_.name, {})
        for entry, rest in self._table.at_ports(mapping, ports, map_).items():
            there = None if entry in gone else elements.decode(entry, rest, map_)
            if there is not None:
                _refuse_addition(mapping, there)

    def _apply_in_pieces(self, add: Sequence[PortMapping], remove: Sequence[PortMapping]) -> None:
        done: list[tuple[elements.Held, elements.Held]] = []
        try:
            for held, gone, steps in self._pieces(add, remove):
                self._send(steps, held, gone)
                done.append((held, gone))
        except NetallocError as error:
            try:
                for held, gone in reversed(done):
                    batch.send(self._table.netlink, self.steps(gone, held))
            except NetallocError as second:
                raise ExceptionGroup(
                    "a batch failed, and so did its undoing", [error, second]
                ) from None
            raise

    def _pieces(
        self, add: Sequence[PortMapping], remove: Sequence[PortMapping]
    ) -> Iterator[tuple[elements.Held, elements.Held, list[batch.Step]]]:
        held, gone = elements.entries(add), elements.entries(remove)
        steps = self.steps(held, gone)
        netlink = self._table.netlink
        if netlink.can_send(batch.size(steps)):
            yield held, gone, steps
        elif len(add) + len(remove) == 1:
            raise CommandError(
                f"{describe([*add, *remove][0])} takes {batch.size(steps)} bytes, and this user "
                f"namespace allows {netlink.max_message} (net.core.wmem_max)"
            )
        elif add and remove:
            yield from self._pieces((), remove)
            yield from self._pieces(add, ())
        else:
            half, rest = len(add) // 2, len(remove) // 2
            yield from self._pieces(add[:half], remove[:rest])
            yield from self._pieces(add[half:], remove[rest:])


def _find(held: elements.Held, entry: bytes) -> PortMapping:
    return next(entries[entry] for entries in held.values() if entry in entries)


def _refuse_addition(mapping: PortMapping, there: PortMapping | None) -> NoReturn:
    found = "it stands twice in one batch, or was there a moment ago"
    if there is not None:
        found = f"it leads to {describe(there)}"
    holder = None if there is None else there.owner or str(there.dest[0])
    raise InUseError(f"{describe(mapping)} cannot be mapped: {found}", holder)

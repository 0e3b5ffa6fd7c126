"""Leases put on the machine and taken off it: the record first, then the kernel.

The order is such that whatever is cut off can be told afterwards and mended:

- attach enters the record and commits, then makes the interface, then notes in the record, if it
  is still there, that it is made. What a kill leaves is a record that says it is not.
- what ends a lease, or detaches it, cuts the interface off from its address before the commit
  that frees the address, and takes it away after. What a kill leaves is an interface without a
  record at most, by which nothing is reached.

Both are what reconcile() mends and check() names. To cut off takes 50 µs and is done under the
store's lock; to make an interface takes a millisecond and to take one away tens of them, and
neither is. What is under way between a record and its interface is told from what a kill has left
by a turn at the interface (`host/attach_turns.py`), which is taken before the store's lock, or
inside of it without waiting.
"""

from __future__ import annotations

import os
from functools import partial
from ipaddress import IPv4Interface, IPv6Interface

from netalloc.errors import InUseError, NetallocError
from netalloc.host import attached
from netalloc.host.attach_turns import AttachTurns
from netalloc.host.attaching import attach_bridged, attach_routed, check_room
from netalloc.host.bridge_count import port_indexes
from netalloc.host.bridge_joining import off_bridge, put_back
from netalloc.host.bridge_ports import needs_hairpin
from netalloc.host.endpoints import Endpoint
from netalloc.host.links import index_of, is_index
from netalloc.host.macs import mac_of
from netalloc.host.severing import rejoin, sever
from netalloc.host.taps import attach_taps
from netalloc.host.target_netns import identity
from netalloc.host.way_elements import WayElements
from netalloc.ipam import attachments as records
from netalloc.light import NamedTuple
from netalloc.logs import Log
from netalloc.manager.undo import attempt
from netalloc.store.records import Attachment, Lease

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from netalloc.address_values import IP
    from netalloc.host.attached import Present
    from netalloc.ipam.change import Change
    from netalloc.manager.attach_targets import Target
    from netalloc.manager.leases import LeaseService
    from netalloc.store.protocol import Transaction

log = Log(__name__)
_IS = "was not made wholly", "is not on the machine"  # of a record that says not made, or made
_WAS = _IS[0], "was gone from the machine"
_REJOINED = 100  # interfaces in one change of reconcile(): some 5 ms


class _Look(NamedTuple):
    """Interfaces without a record, records without an interface, and all records."""

    strangers: list[Present]
    missing: list[Attachment]
    known: list[Attachment]


class AttachService:
    """The interfaces of one network's leases."""

    def __init__(self, leases: LeaseService) -> None:
        self._leases = leases
        self._network = leases.network
        self._prefix = records.alias_prefix(leases.network.name)
        self._group = records.group_of(leases.network.number)
        self.ways = None if leases.network.bridge else WayElements(self._group)

    # ---- putting on, taking off

    def attach(self, pairs: Sequence[tuple[Lease, Target]]) -> list[Attachment]:
        """Put leases where their targets say, all or none; what was not there already.

        Raises StaleLeaseError, InUseError where a lease is elsewhere, InterfaceError with the
        reason, ExhaustedError where the bridge has no room.
        """
        store = self._leases.read(self._store_number)
        wanted = [self._record(*pair) for pair in pairs]
        both = zip(wanted, pairs, strict=True)
        endpoints = [self._endpoint(one, store, target) for one, (_, target) in both]
        turns = AttachTurns(record.index for record in wanted)
        return turns.held(partial(self._attach, pairs, wanted, endpoints))

    def _attach(
        self,
        pairs: Sequence[tuple[Lease, Target]],
        wanted: Sequence[Attachment],
        endpoints: Sequence[Endpoint],
    ) -> list[Attachment]:
        self._check_room(endpoints)
        fresh: list[tuple[Attachment, Endpoint]] = []
        triples = [
            (lease, one, end) for (lease, _), one, end in zip(pairs, wanted, endpoints, strict=True)
        ]
        try:
            self._leases.run("attach", partial(self._enter, triples, fresh))
            self._clear(fresh)
            self._make(endpoints)
            self._confirm(wanted, endpoints, fresh)
            return [record for record, _ in fresh]
        except BaseException:
            self._take_back(fresh)
            raise

    def detach(self, leases: Sequence[Lease]) -> None:
        """Take leases off the machine; those that are not on it are no error."""

        def change(made: Change) -> None:
            current = [self._leases.current(made.tx, lease) for lease in leases]
            found = records.of_leases(made.tx, current)
            self.part(made, found, turns)
            records.drop(made.tx, found)

        turns = AttachTurns(records.index_of(lease.generation) for lease in leases)
        turns.held(lambda: self._leases.run("detach", change))

    def part_from(self, made: Change, ending: Sequence[Lease]) -> Sequence[Lease]:
        """The same of what these leases have, whose records go with them; which have nothing."""
        found = records.of_leases(made.tx, ending)
        self.part(made, found)
        ours = {one.ordinal for one in found}
        return [lease for lease in ending if lease.ordinal not in ours]

    def part(
        self, made: Change, ending: Sequence[Attachment], turns: AttachTurns | None = None
    ) -> None:
        """Cut interfaces off as part of a change that ends their leases, or detaches them.

        `turns` are the caller's. Without, those that can be had are: who has the others is
        attaching one of these, and looks afterwards whether its lease has ended.
        """
        if not ending:
            return
        store = self._store_number(made.tx)
        endpoints = [self._endpoint(record, store) for record in ending]
        bridge = self._bridge_or_none()
        if turns is None:
            turns = AttachTurns(one.index for one in ending)
            made.undo.append(turns.close)
            turns.take()
        made.undo.append(partial(rejoin, endpoints, bridge, self.ways))
        sever(endpoints, bridge, self.ways)
        self._leases.guarding.leave(made, ending)
        made.after.append(partial(self._remove, endpoints))
        made.after.append(turns.close)

    # ---- upkeep

    def reconcile(self) -> list[str]:
        """Make the interfaces agree with the records; what was done, in words.

        An interface without a record goes, a record without an interface goes too, and one
        that lost its way on the host gets it back. O(interfaces).
        """
        turns = AttachTurns(())
        found = turns.held(lambda: self._mended(turns))
        gone = set(found.missing)
        here = [one for one in found.known if one not in gone]
        for start in range(0, len(here), _REJOINED):
            part = partial(self._rejoin, here[start : start + _REJOINED])
            self._leases.run("reconcile", part)
        return [
            *[f"interface {e.name} of {e.alias} had no lease: removed" for e in found.strangers],
            *[f"{self._shown(one)} {_WAS[one.made]}: forgotten" for one in found.missing],
        ]

    def differences(self) -> list[str]:
        """Leases without an interface that they should have, and interfaces without a lease."""
        turns = AttachTurns(())
        found = turns.held(lambda: self._look(turns))
        return [
            *[f"interface {one.name} of {one.alias} has no lease" for one in found.strangers],
            *[f"{self._shown(one)} {_IS[one.made]}" for one in found.missing],
            *[f"{one.shown} is not on its bridge" for one in self._off_bridge(found.known)],
        ]

    def _off_bridge(self, known: Sequence[Attachment]) -> list[Endpoint]:
        bridge, store = self._bridge_or_none(), self._leases.read(self._store_number)
        return off_bridge([self._endpoint(one, store) for one in known], bridge) if bridge else []

    def _mended(self, turns: AttachTurns) -> _Look:
        """What differed, and does no longer but for ways on the host."""
        found = self._look(turns)
        attached.detach_present(found.strangers)
        if found.missing:
            store = self._leases.read(self._store_number)
            halves = [self._endpoint(one, store) for one in found.missing if not one.made]
            self._remove(halves, self._bridge_or_none())
            self._leases.run("reconcile", partial(self._drop, found.missing))
        return found

    def _look(self, turns: AttachTurns) -> _Look:
        """What differs and is not just being changed; takes the turns at it."""
        present = attached.present(self._prefix)  # first: a record is there before its interface
        store, known = self._survey()
        aliases = {self._alias(record.generation, store) for record in known}
        strangers = [one for one in present.values() if one.alias not in aliases]
        missing = self._missing(known)
        if strangers or missing:
            free = turns.take([e.ifindex for e in strangers] + [one.index for one in missing])
            now = self._leases.read(lambda tx: records.of_indexes(tx, free))
            aliases = {self._alias(record.generation, store) for record in now}
            there = attached.present_of([e.ifindex for e in strangers if e.ifindex in free])
            strangers = [
                e
                for e in strangers
                if e.alias not in aliases
                and e.ifindex in there
                and there[e.ifindex].alias == e.alias
            ]
            missing = self._missing([one for one in missing if one in set(now)])
        return _Look(strangers, missing, known)

    def _rejoin(self, some: Sequence[Attachment], made: Change) -> None:
        """Mend the way to those that are still attached; none is cut off meanwhile."""
        table, store = made.tx.table(Attachment), self._store_number(made.tx)
        still = [one for one in some if table.get(one.network, one.ordinal) == one]
        if still:
            endpoints, bridge = (
                [self._endpoint(one, store) for one in still],
                self._bridge_or_none(),
            )
            if bridge:
                put_back(endpoints, bridge, hairpin=needs_hairpin(str(self._network.bridge)))
            rejoin(endpoints, bridge, self.ways)

    # ---- records and endpoints

    def _survey(self) -> tuple[str, list[Attachment]]:
        known = self._leases.survey(lambda tx: records.of_network(tx, self._network.number))
        return self._leases.read(self._store_number), known

    def _store_number(self, tx: Transaction) -> str:
        """What tells this store from others that had a network of the name."""
        number = tx.last("store")
        return f"{number:x}" if number else f"p{os.getpid()}"

    def _alias(self, generation: int, store: str) -> str:
        return f"{self._prefix}{store}.{generation}"

    def _record(self, lease: Lease, target: Target) -> Attachment:
        is_tap = target.tap is not None
        mac = target.mac if target.mac is not None else mac_of(self._ip(lease.ordinal))
        return Attachment(
            lease.network,
            lease.ordinal,
            lease.generation,
            "tap" if is_tap else "veth",
            target.tap if target.tap is not None else records.name_of(lease.generation),
            records.index_of(lease.generation),
            None if is_tap else identity(target.netns),
            None if is_tap else target.ifname,
            mac.hex(":"),
            target.mtu or 0,
            made=0,
        )

    def _ip(self, ordinal: int) -> IP:
        return self._leases.subnets.address(ordinal)

    def _endpoint(self, record: Attachment, store: str, target: Target | None = None) -> Endpoint:
        v4 = v6 = gateway4 = gateway6 = None
        for subnet in self._leases.subnets.each:
            number = int(subnet.address(record.ordinal))
            if subnet.version == 4:
                v4, gateway4 = IPv4Interface((number, subnet.prefixlen)), subnet.gateway
            else:
                v6, gateway6 = IPv6Interface((number, subnet.prefixlen)), subnet.gateway
        return Endpoint(
            record.index,
            record.interface,
            self._alias(record.generation, store),
            (v4, v6),
            (gateway4, gateway6),  # type: ignore[arg-type]
            bytes.fromhex(record.mac.replace(":", "")),
            -1 if target is None else target.netns,
            record.peer or "eth0",
            record.mtu or None,
            None if target is None else target.uid,
            None if target is None else target.gid,
        )

    def _shown(self, record: Attachment) -> str:
        return f"{self._ip(record.ordinal)}, attached as {records.describe(record)},"

    def _enter(
        self,
        triples: Sequence[tuple[Lease, Attachment, Endpoint]],
        fresh: list[tuple[Attachment, Endpoint]],
        made: Change,
    ) -> None:
        """Enter the records; `fresh` are those that were not there."""
        fresh.clear()
        replaced: list[Attachment] = []  # with another MAC address, perhaps
        for lease, record, endpoint in triples:
            current = self._leases.current(made.tx, lease)
            ip = self._ip(lease.ordinal)
            found = records.enter(made.tx, current, record, self._is_there, ip)
            if found.is_fresh:
                fresh.append((record, endpoint))
                replaced += found.instead_of
        self._leases.guarding.leave(made, replaced)
        self._leases.guarding.enter(made, [record for record, _ in fresh])  # before it can send

    def _clear(self, fresh: Sequence[tuple[Attachment, Endpoint]]) -> None:
        """Take away what a killed detach() has left: it may be in another namespace."""
        self._remove([endpoint for _, endpoint in fresh if is_index(endpoint.index)])

    def _check_room(self, endpoints: Sequence[Endpoint]) -> None:
        bridge = self._network.bridge
        if bridge is not None:
            check_room(bridge, endpoints, port_indexes(bridge))

    def _make(self, endpoints: Sequence[Endpoint]) -> None:
        taps = [one for one in endpoints if one.netns < 0]
        veths = [one for one in endpoints if one.netns >= 0]
        group, ways = self._group, self.ways
        bridge = None if self._network.bridge is None else index_of(self._network.bridge)
        hairpin = bridge is not None and needs_hairpin(str(self._network.bridge))
        if veths and bridge is None:
            attach_routed(veths, group, ways)
        elif veths and bridge is not None:
            attach_bridged(veths, bridge, group=group, hairpin=hairpin)
        if taps:
            try:
                attach_taps(taps, group=group, bridge_index=bridge, hairpin=hairpin, ways=ways)
            except BaseException:
                self._remove(veths)
                raise

    def _confirm(
        self,
        wanted: Sequence[Attachment],
        endpoints: Sequence[Endpoint],
        fresh: Sequence[tuple[Attachment, Endpoint]],
    ) -> None:
        """Take back what was made where the lease, or the record of it, ended meanwhile."""

        new = {record.index for record, _ in fresh}
        again = [one for one in wanted if one.index not in new]

        def confirm(made: Change) -> list[int]:
            if again:
                self._leases.guarding.renew(again)
                self._rejoin([one._replace(made=1) for one in again], made)
            return records.settle(made.tx, wanted)

        ended = self._leases.run("attach", confirm)
        if ended:
            self._remove([endpoints[i] for i in ended], self._bridge_or_none())
            where = ", ".join(self._shown(wanted[i]) for i in ended)
            raise InUseError(f"{where} was detached, or its lease ended, while it was attached")

    def _drop(self, gone: Sequence[Attachment], made: Change) -> None:
        """Forget what is not on the machine any more."""
        self._leases.guarding.leave(made, records.drop(made.tx, gone))

    def _take_back(self, fresh: Sequence[tuple[Attachment, Endpoint]]) -> None:
        """Take away what was not made wholly, and then its records."""
        if not fresh:
            return
        self._remove([endpoint for _, endpoint in fresh], self._bridge_or_none())
        entered = [one for record, _ in fresh for one in (record, record._replace(made=1))]
        failure = attempt(lambda: self._leases.run("attach", partial(self._drop, entered)))
        if failure is not None:
            log.error("records of what was not attached stay until reconcile: %s", failure)

    def _bridge_or_none(self) -> int | None:
        if self._network.bridge is None:
            return None
        try:
            return index_of(self._network.bridge)
        except NetallocError:
            return 0  # a bridge that is gone has no ports to see to

    def _remove(self, endpoints: Sequence[Endpoint], bridge: int | None = None) -> None:
        """Take interfaces away; with a bridge, where their addresses are theirs, neighbours too."""
        failure = attempt(lambda: attached.detach(endpoints, bridge or None, self.ways))
        if failure is not None:
            log.error("interfaces stay until reconcile: %s", failure)

    def _is_there(self, record: Attachment) -> bool:
        return record.index in attached.present_of((record.index,))

    def _missing(self, known: Sequence[Attachment]) -> list[Attachment]:
        """Those that are not on the machine, or not wholly."""
        there = attached.present_of([one.index for one in known if one.made])
        return [one for one in known if one.index not in there]

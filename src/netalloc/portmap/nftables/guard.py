"""One network's part of the guard: who of it is who, and who may speak to whom.

Guarded networks share two tables (see guard_rules.py), which come with the first of them and go
with the last. Each element has the name of its network in its comment. An open network has one
element, and only while there is a guard: its bridge, which guarded containers do not reach.
"""

import errno
import logging
import struct
from collections.abc import Callable, Iterable
from socket import IPPROTO_TCP, IPPROTO_UDP
from threading import RLock
from typing import Final, NamedTuple, TypeVar

from netalloc.address_values import IP
from netalloc.errors import CommandError, InterfaceError
from netalloc.host.attached import present_of
from netalloc.host.lazy_socket import LazySocket
from netalloc.host.links import index_of
from netalloc.host.macs import bridge_mac
from netalloc.host.netlink import NetlinkError, NetlinkSocket, explaining
from netalloc.locks import locked
from netalloc.portmap.link import Link
from netalloc.portmap.nftables import batch
from netalloc.portmap.nftables import guard_rules as rules
from netalloc.portmap.nftables import guard_tables as tables
from netalloc.portmap.nftables.guard_bridges import bridges_of_all
from netalloc.portmap.nftables.guard_rules import BRIDGE, INET
from netalloc.portmap.nftables.guard_tables import Entries, Held

logger = logging.getLogger(__name__)

T = TypeVar("T")
_ATTEMPTS: Final = 20  # where others come and go meanwhile
_NO_NFTABLES: Final = (errno.EPROTONOSUPPORT, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM)
_SERVICE: Final = struct.Struct("=IB3x")  # and the port, in network order, padded
_SOURCE: Final = struct.Struct("=I6s2x")  # index and MAC address; and the address
_PROTOCOLS: Final = {"tcp": IPPROTO_TCP, "udp": IPPROTO_UDP, "sctp": 132}


class GuardedPort(NamedTuple):
    """A container's interface: the host's end, and what it may send as."""

    index: int  # type: ignore[assignment]  # in the place of tuple.index, which none of us calls
    mac: bytes
    addresses: tuple[IP, ...]


# The addresses of two containers that reach each other.
Pair = tuple[tuple[IP, ...], tuple[IP, ...]]


class Guard:
    """A network's elements, changed over the socket of its mappings. Safe for threads.

    `registry` is the table of the mappings, which knows all bridges. `services` are the ports of
    the host that its containers reach, "53/udp".
    """

    def __init__(
        self, link: Link, owner: str, services: tuple[str, ...], registry: str, socket: LazySocket
    ) -> None:
        self.is_guarded = link.isolation == "guarded"
        self._has_ports = self.is_guarded and link.bridge is not None
        self._link = link
        self._owner = owner
        self._services = services
        self._registry = registry
        self._socket = socket
        self._explaining = explaining(f"tables {rules.GUARD}")
        self._lock = RLock()

    watched_tables: tuple[str, ...] = (rules.GUARD,)
    watched_families: tuple[int, ...] = tuple([head[0] for head in tables.FAMILY.values()])
    watched_sets: tuple[str, ...] = rules.CHANGING

    @property
    def portid(self) -> int:
        """By which a monitor knows our own changes."""
        return self._netlink.portid

    def close(self) -> None:
        """Give back the socket."""
        self._socket.close()

    # ---- the network itself

    @locked
    def setup(self) -> tuple[str, ...]:
        """Make the tables if there are none, and put the network in; what was missing."""
        with self._explaining:
            if not self.is_guarded:
                self._announce()
                return ()
            for _ in range(_ATTEMPTS):
                wrong = tables.restore(self._netlink)
                try:
                    return wrong + self._agree(self._fixed(), own=False)
                except NetlinkError as error:
                    if error.errno != errno.ENOENT:  # the last of the others left meanwhile
                        raise
        raise CommandError(f"tables {rules.GUARD} went away during {_ATTEMPTS} set-ups")

    @locked
    def cleanup(self) -> None:
        """Take out all that is ours, and the tables with the last guarded network."""
        with self._explaining:
            self._while_unseen(self._leaving)

    # ---- what is in it

    @locked
    def enter(self, ports: Iterable[GuardedPort]) -> None:
        """Let these send as what they are; those that may already are no error."""
        if self.is_guarded:
            self._put(self._of_ports(ports))

    @locked
    def leave(self, ports: Iterable[GuardedPort]) -> None:
        """Let these send nothing more; those that may not are no error."""
        if self.is_guarded:
            self._take(self._of_ports(ports))

    @locked
    def allow(self, pairs: Iterable[Pair]) -> None:
        """Let each two reach each other."""
        self._put(self._of_pairs(pairs))

    @locked
    def disallow(self, pairs: Iterable[Pair]) -> None:
        """Let them do so no longer; what they have open goes on until its flow is forgotten."""
        self._take(self._of_pairs(pairs))

    @locked
    def reconcile(self, ports: Iterable[GuardedPort], pairs: Iterable[Pair]) -> tuple[str, ...]:
        """Have the guard say this of our network and nothing else; what was wrong."""
        wrong = self.setup()
        if not self.is_guarded and not self._is_there():
            return wrong
        with self._explaining:
            return wrong + self._agree(self._whole(ports, pairs))

    @locked
    def differences(self, ports: Iterable[GuardedPort], pairs: Iterable[Pair]) -> list[str]:
        """What the guard lacks of ours, and has besides, in words. O(all guarded)."""
        if not self.is_guarded:
            return []
        with self._explaining:
            missing, extra, _ = self._compared(self._whole(ports, pairs))
            wrong = [] if tables.is_whole(self._netlink) else ["the rules of the guard differ"]
        return (
            wrong
            + [f"the guard lacks {what}" for what in _described(missing)]
            + [f"the guard has {what} besides" for what in _described(extra)]
        )

    # ---- elements

    def _whole(self, ports: Iterable[GuardedPort], pairs: Iterable[Pair]) -> Held:
        whole = {where: Entries() for where in _EVERYTHING}
        of_ports = self._of_ports(ports) if self.is_guarded else {}
        for some in (self._fixed(), of_ports, self._of_pairs(pairs)):
            for where, entries in some.items():
                whole[where] |= entries
        return whole

    def _fixed(self) -> Held:
        """What is there as long as the network is."""
        if not self.is_guarded:
            return {(INET, rules.OURS): self._bridge()}
        bridge = self._link.bridge
        if bridge is None:
            group = struct.pack("=I", self._link.group)
            return {
                (INET, rules.GROUPS): {group: b""},
                (INET, rules.GROUP_SERVICES): self._served(self._link.group),
            }
        index = _index(bridge)
        if index is None:
            return {}
        found: Held = {
            (INET, rules.BRIDGES): {struct.pack("=I", index): b""},
            (INET, rules.OURS): {struct.pack("=I", index): b""},
            (INET, rules.BRIDGE_SERVICES): self._served(index),
        }
        mac = _mac_of(bridge, index)
        for gateway, name in zip(
            self._link.gateways, (rules.GATEWAYS, rules.GATEWAYS6), strict=True
        ):
            if gateway is not None:
                found[BRIDGE, name] = {gateway.packed: mac}
        return found

    def _served(self, where: int) -> Entries:
        found = {}
        for service in self._services:
            port, _, protocol = service.partition("/")
            head = _SERVICE.pack(where, _PROTOCOLS[protocol])
            found[head + struct.pack(">H2x", int(port))] = b""
        return found

    def _of_ports(self, ports: Iterable[GuardedPort]) -> Held:
        if not self._has_ports:
            return {
                (INET, rules.ROUTED6): {
                    struct.pack("=I", index) + ip.packed: b""
                    for index, _, addresses in ports
                    for ip in addresses
                    if ip.version == 6
                }
            }
        found: Held = {(BRIDGE, name): {} for name in _OF_PORTS}
        for index, mac, addresses in ports:
            found[BRIDGE, rules.PORTS][struct.pack("=I", index)] = b""
            head = _SOURCE.pack(index, mac)
            for ip in addresses:
                if ip.version == 4:
                    found[BRIDGE, rules.SOURCES][head + ip.packed] = b""
                    found[BRIDGE, rules.MACS][ip.packed] = mac
                else:
                    found[BRIDGE, rules.SOURCES6][head + ip.packed] = b""
                    found[BRIDGE, rules.TARGETS6][head + ip.packed] = b""
                    found[BRIDGE, rules.MACS6][ip.packed] = mac
        return found

    def _of_pairs(self, pairs: Iterable[Pair]) -> Held:
        four: Entries = {}
        six: Entries = {}
        for one, other in pairs:
            for a, b in zip(one, other, strict=True):
                some = four if a.version == 4 else six
                some[a.packed + b.packed] = some[b.packed + a.packed] = b""
        found: Held = {(INET, rules.ALLOW): four, (INET, rules.ALLOW6): six}
        if self._has_ports:
            found |= {(BRIDGE, rules.ALLOW): four, (BRIDGE, rules.ALLOW6): six}
            found[BRIDGE, rules.PAIRS6] = six
        return found

    # ---- the kernel

    @property
    def _netlink(self) -> NetlinkSocket:
        return self._socket.get()

    def _put(self, held: Held) -> None:
        with self._explaining:
            steps = tables.additions(held, self._owner)
            try:
                self._send(steps)
            except NetlinkError as error:
                if error.errno not in (errno.EEXIST, errno.EBUSY):
                    raise
                self._take(self._present(held))  # what is left of another store's network
                self._send(steps)

    def _take(self, held: Held) -> None:
        with self._explaining:
            for _ in range(_ATTEMPTS):
                try:
                    return self._send(tables.deletions(held))
                except NetlinkError as error:
                    if error.errno != errno.ENOENT:
                        raise
                held = self._present(held)
        raise CommandError(f"tables {rules.GUARD} changed during {_ATTEMPTS} attempts")

    def _present(self, held: Held) -> Held:
        """Those of these keys that are there."""
        found: Held = {}
        for where, entries in held.items():
            there = tables.listed(self._netlink, *where) if entries else {}
            found[where] = {key: data for key, data in entries.items() if key in there}
        return found

    def _compared(self, wanted: Held) -> tuple[Held, Held, Held]:
        """What is missing, what is there besides, and what is in the way of what is missing."""
        missing: Held = {}
        extra: Held = {}
        way: Held = {}
        for where, entries in wanted.items():
            there = tables.listed(self._netlink, *where)
            right = {key for key, data in entries.items() if there.get(key, (None,))[0] == data}
            missing[where] = {key: data for key, data in entries.items() if key not in right}
            extra[where] = {
                key: data
                for key, (data, owner) in there.items()
                if owner == self._owner and key not in entries
            }
            way[where] = {key: there[key][0] for key in missing[where] if key in there}
        return missing, extra, way

    def _agree(self, wanted: Held, *, own: bool = True) -> tuple[str, ...]:
        """Bring these sets to what they should be; with `own` what is ours besides goes."""
        missing, extra, way = self._compared(wanted)
        gone = _merged(extra, way) if own else way
        self._send([*tables.deletions(gone), *tables.additions(missing, self._owner)])
        strangers = self._others() if self._has_ports else {}
        self._send(tables.additions({(INET, rules.OURS): strangers}, ""))
        wrong = [f"the guard lacked {what}" for what in _described(missing)]
        wrong += [f"the guard had {what} besides" for what in _described(extra) if own]
        return tuple(wrong)

    def _others(self) -> Entries:
        """The bridges of all networks of the host that are not among ours yet."""
        known = tables.listed(self._netlink, INET, rules.OURS)
        found = bridges_of_all(self._netlink, self._registry)
        return {key: b"" for key in found if key not in known}

    def _announce(self) -> None:
        """Say which bridge is ours, where there is a guard."""
        if self._is_there():
            try:
                self._send(tables.additions(self._fixed(), self._owner))
            except NetlinkError as error:
                if error.errno != errno.ENOENT:  # the last guarded network left at this moment
                    raise

    def _is_there(self) -> bool:
        try:
            return tables.is_there(self._netlink)
        except NetlinkError as error:
            if error.errno not in _NO_NFTABLES:
                raise
            return False

    def _bridge(self) -> Entries:
        index = None if self._link.bridge is None else _index(self._link.bridge)
        return {} if index is None else {struct.pack("=I", index): b""}

    def _leaving(self) -> list[batch.Step]:
        whole = tables.table_deletions(self._netlink)
        if not whole:
            return []
        gone: Held = {}
        stays = False
        for where in _EVERYTHING:
            there = tables.listed(self._netlink, *where)
            gone[where] = {key: b"" for key, (_, owner) in there.items() if owner == self._owner}
            if where[1] in (rules.GROUPS, rules.BRIDGES):
                stays |= len(gone[where]) < len(there)
        return tables.deletions(gone) if stays else whole

    def _while_unseen(self, work: Callable[[], list[batch.Step]]) -> None:
        """Take steps that were concluded from what no other has changed since."""
        for _ in range(_ATTEMPTS * 10):
            seen = batch.generation(self._netlink)
            steps = work()
            if not steps:
                return
            try:
                batch.send(self._netlink, steps, seen)
            except NetlinkError as error:
                if error.errno not in (errno.ERESTART, errno.ENOENT):
                    raise
            else:
                return
        raise CommandError(f"tables changed all the time: {rules.GUARD} was not left")

    def _send(self, steps: list[batch.Step]) -> None:
        if not steps:
            return
        if self._netlink.can_send(batch.size(steps)):
            batch.send(self._netlink, steps)
            return
        for step in steps:  # each is right by itself
            batch.send(self._netlink, [step])


_OF_PORTS: Final = (
    *(rules.PORTS, rules.SOURCES, rules.SOURCES6, rules.TARGETS6),
    *(rules.MACS, rules.MACS6),
)
_EVERYTHING: Final = [(family, name) for family, sets in rules.SETS.items() for name in sets]


def _merged(one: Held, other: Held) -> Held:
    return {where: one[where] | other[where] for where in one}


def _described(held: Held) -> list[str]:
    return [
        f"{len(entries)} of set {name} of table {family}"
        for (family, name), entries in held.items()
        if entries
    ]


def _index(bridge: str) -> int | None:
    try:
        return index_of(bridge)
    except InterfaceError:
        return None


def _mac_of(bridge: str, index: int) -> bytes:
    """Its MAC address, or the one that it gets with its first port."""
    there = present_of((index,)).get(index)
    return there.mac if there is not None and any(there.mac) else bridge_mac(bridge)

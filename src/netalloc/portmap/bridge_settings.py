"""The kernel settings that containers behind a bridge need, and taking them back."""

import fcntl
import logging
import socket
import struct
from contextlib import suppress
from typing import Final

from netalloc.errors import CommandError, InterfaceError
from netalloc.family import FAMILIES, NO_NETWORK, V4, V6, NetworkPair
from netalloc.host import (
    closed_networks,
    forwarding,
    gateway_addresses,
    loopback_way,
    network_way,
    sysctl,
)
from netalloc.host.bridge_ports import needs_hairpin, set_hairpin
from netalloc.host.links import index_of
from netalloc.host.loopback_guard import (
    Guard,
    guards,
    number_of,
    open_socket,
    remove_guard,
    remove_place,
    set_guard,
)
from netalloc.host.loopback_route import add_route, has_route, leads_to, remove_route
from netalloc.host.netlink import NetlinkSocket, explaining
from netalloc.host.opened import Entry, opened
from netalloc.host.rule_monitor import NOTHING, Watched

logger = logging.getLogger(__name__)

_LOOPBACK6: Final = "loopback6"  # ::1 is local to a bridge, in the record
_LOCALNET: Final = "route_localnet"
_SERVED: Final = "bridge"  # it has a network, whether or not anything is switched on for it
_OF_BRIDGES: Final = (_LOOPBACK6, _LOCALNET, _SERVED)
_GET_NAME, _REQUEST = 0x8910, struct.Struct("16si20x")  # SIOCGIFNAME, struct ifreq


class BridgeSettings:
    """ip_forward, a guard and route_localnet on the bridge, hairpin mode where it is needed.

    `user` names the one who needs them among all of netalloc in the network namespace, and
    `networks` the families that it needs them for, IPv4 where there are none. What is changed on
    the host:

    - `net.ipv4.ip_forward` is switched on, which is logged. It is switched off again when
      the last user leaves, if it was off before the first one came. The same goes for
      `net.ipv6.conf.all.forwarding` (netalloc.host.forwarding).
    - With IPv6 ::1 is made local to the bridge (netalloc.host.loopback_route), for the way from
      there, until its last user leaves. Where ip6tables sees bridged frames
      (bridge-nf-call-ip6tables=1) the kernel has no such way: `loopback6` says so.
    - `net.ipv4.conf.BRIDGE.route_localnet`, for the way from 127.0.0.1, is switched on behind
      a guard at the bridge (netalloc.host.loopback_guard), and off before the guard goes. With
      several users on a bridge the last one does it. A bridge that was renamed meanwhile is
      closed at the next set-up, reconciliation or clean-up of any user. Without a guard,
      where the kernel has no cls_bpf, it stays off and there is no way from 127.0.0.1.
    - The bridge is entered into the host's record, so that a network that is guarded later knows
      whom its containers may not reach (netalloc.portmap.nftables.guard_bridges).
    - Where iptables or ip6tables sees bridged frames (bridge-nf-call-iptables=1), all ports of
      the bridge are put into hairpin mode, without which a container does not reach its own
      published port. Those that join later are at the next reconciliation, which a watch makes
      at once. That stays: it ends with the ports.

    The backends' rules hold a second guard. Only a program that removes both, the filters of
    the bridge (`tc qdisc del dev BRIDGE clsact`) and the rules (`nft flush ruleset`), opens
    127.0.0.0/8 to the containers, until the next reconciliation. With a watch that is at once
    (0.1 to 5 ms measured) or, just after another repair, within half a second.
    """

    def __init__(self, bridge: str | None, user: str, networks: NetworkPair = NO_NETWORK) -> None:
        self.bridge = bridge
        self.loopback6 = False  # whether the host reaches containers from ::1
        self._families = networks.families or (V4,)
        self._subnet6 = networks.v6
        self._user = user
        self._number = number_of(user)
        self._ifindex: int | None = None  # of the bridge that we have served
        self._localnet = ("net", "ipv4", "conf", bridge or "", "route_localnet")
        self._has_guard = True
        self._is_known = False  # as a user of forwarding

    def check(self) -> None:
        """Raise InterfaceError when there is no bridge, before anything has changed.

        A bridge that we served under this name, and that is called otherwise by now, is
        closed.
        """
        if self.bridge is None:
            return
        try:
            here = index_of(self.bridge)
        except InterfaceError:
            here = None
        if self._ifindex is not None and here != self._ifindex:
            with opened() as record, explaining(f"filters of bridge {self.bridge}"):
                netlink = open_socket()
                try:
                    _close_renamed(netlink, record)
                finally:
                    netlink.close()
            self._ifindex = None
        if here is None:
            raise InterfaceError(f"no such interface: {self.bridge}")

    def restore(self) -> tuple[str, ...]:
        """Switch on what is off, the guard first; says what was. 0.1 ms when nothing was.

        Raises InterfaceError when there is no bridge, CommandError and NetallocError
        without the privilege.
        """
        self.check()
        if self.bridge is None:
            return self._restore_forwarding()
        ifindex = index_of(self.bridge)
        with explaining(f"filters of bridge {self.bridge}"):
            netlink = open_socket()
            try:
                found = self._restore(netlink, ifindex, self.bridge)
            finally:
                netlink.close()
        if self._is_bridged(self.bridge):
            found += tuple(f"hairpin mode of {port} was off" for port in set_hairpin(self.bridge))
        return found

    def watched(self) -> Watched:
        """The bridge, where ports that join it have to be seen to."""
        if self.bridge is not None and self._is_bridged(self.bridge):
            return Watched(index_of(self.bridge))
        return NOTHING

    def _is_bridged(self, bridge: str) -> bool:
        return any(needs_hairpin(bridge, family) for family in self._families)

    def withdraw(self) -> None:
        """Switch off what only we have needed and what was off before; no bridge is no error."""
        ifindex = self._ifindex
        if ifindex is None and self.bridge is not None:
            with suppress(InterfaceError):
                ifindex = index_of(self.bridge)
        with opened() as record, explaining(f"filters of bridge {self.bridge}"):
            netlink = open_socket()
            try:
                if ifindex is not None:
                    _withdraw_guard(netlink, ifindex, self._number, record)
                    _withdraw_loopback6(netlink, ifindex, self._user, record)
                _withdraw_all(netlink, self._user, record)
                _close_renamed(netlink, record)
            finally:
                netlink.close()
            _open_networks(record, self._user)
            for family in FAMILIES:
                forwarding.switch_off(record, self._user, family)
        self._ifindex, self._is_known, self.loopback6 = None, False, False

    def _restore(self, netlink: NetlinkSocket, ifindex: int, bridge: str) -> tuple[str, ...]:
        wants6 = V6 in self._families and not needs_hairpin(bridge, V6)
        settled = self._ifindex and (
            (V4 not in self._families or self._is_localnet_settled(netlink, ifindex))
            and (V6 not in self._families or has_route(netlink, ifindex) == wants6)
        )
        found: tuple[str, ...] = ()
        if settled:
            found = self._restore_forwarding()
        else:
            with opened() as record:
                _close_renamed(netlink, record)
                _open_networks(record, self._user)
                record.add(Entry(_SERVED, self._user, ifindex, bridge))
                if V4 in self._families:
                    found += self._restore_localnet(netlink, ifindex, bridge, record)
                self._warn_of_no_way(netlink, ifindex, bridge)
                if wants6:
                    found += self._restore_loopback6(netlink, ifindex, bridge, record)
                else:
                    _withdraw_loopback6(netlink, ifindex, self._user, record)
                self._ifindex = ifindex
                found += self._forward(record)
        self.loopback6 = wants6
        return found

    def _warn_of_no_way(self, netlink: NetlinkSocket, ifindex: int, bridge: str) -> None:
        """Say so where nothing would ever come through: what is asked is lost without a word."""
        subnet = self._subnet6
        if subnet is not None and not leads_to(netlink, ifindex, subnet[-1].packed):
            logger.warning(
                "bridge %s has no address in %s: nothing reaches its containers there, nor they "
                "the host", bridge, subnet,
            )  # fmt: skip

    def _is_localnet_settled(self, netlink: NetlinkSocket, ifindex: int) -> bool:
        if not self._has_guard:
            return True
        there = any(guard.number == self._number for guard in guards(netlink, ifindex))
        return there and sysctl.read(*self._localnet) != "0"

    def _restore_localnet(
        self, netlink: NetlinkSocket, ifindex: int, bridge: str, record: set[Entry]
    ) -> tuple[str, ...]:
        found: tuple[str, ...] = ()
        there = guards(netlink, ifindex)
        closed = sysctl.read(*self._localnet) == "0"
        mine = Entry(_LOCALNET, self._user, ifindex, bridge)
        ours = any(entry.what == mine.what and entry[2:] == mine[2:] for entry in record)
        was_closed = closed or ours or any(guard.opened for guard in there)
        if Guard(self._number, was_closed) not in there:
            self._set_guard(netlink, ifindex, Guard(self._number, was_closed), record)
            if self._ifindex and self._has_guard:
                found += (f"the guard of bridge {bridge} was missing",)
        if self._has_guard and was_closed:
            record.add(mine)
        if self._has_guard and closed:
            sysctl.write("1", *self._localnet)
            found += (f"{'.'.join(self._localnet)} was 0",)
        return found

    def _restore_loopback6(
        self, netlink: NetlinkSocket, ifindex: int, bridge: str, record: set[Entry]
    ) -> tuple[str, ...]:
        record.add(Entry(_LOOPBACK6, self._user, ifindex, bridge))
        if add_route(netlink, ifindex):
            return (f"::1 was not local to bridge {bridge}",)
        return ()

    def _restore_forwarding(self) -> tuple[str, ...]:
        if self._is_known and all(forwarding.is_on(family) for family in self._families):
            return ()
        with opened() as record:
            return self._forward(record)

    def _forward(self, record: set[Entry]) -> tuple[str, ...]:
        found: tuple[str, ...] = ()
        for family in self._families:
            found += forwarding.switch_on(record, self._user, family)
        self._is_known = True
        return found

    def _set_guard(
        self, netlink: NetlinkSocket, ifindex: int, guard: Guard, record: set[Entry]
    ) -> None:
        try:
            if set_guard(netlink, ifindex, guard):
                record.add(Entry("clsact", "", ifindex))
            self._has_guard = True
        except CommandError as error:
            if "EPERM" in str(error):
                raise
            self._has_guard = False
            logger.warning("there is no way to containers from 127.0.0.1: %s", error)


def close_bridges(record: set[Entry], user: str) -> None:
    """Take back what this user has opened on any bridge; none is no error."""
    if all(entry.user != user or entry.what not in _OF_BRIDGES for entry in record):
        return
    with explaining("filters of bridges"):
        netlink = open_socket()
        try:
            _withdraw_all(netlink, user, record)
        finally:
            netlink.close()


def _open_networks(record: set[Entry], user: str) -> None:
    """Take back what a routed network of this user has on the host; none is no error."""
    closed_networks.withdraw(record, user)
    loopback_way.withdraw(record, user)
    network_way.withdraw(record, user)
    gateway_addresses.withdraw(record, user)


def _withdraw_all(netlink: NetlinkSocket, user: str, record: set[Entry]) -> None:
    record -= {entry for entry in record if entry[:2] == (_SERVED, user)}
    for entry in [e for e in record if e[:2] == (_LOOPBACK6, user)]:
        _withdraw_loopback6(netlink, entry.ifindex, user, record)
    for entry in [e for e in record if e[:2] == (_LOCALNET, user)]:
        if _name_of(entry.ifindex) == entry.interface:
            _withdraw_guard(netlink, entry.ifindex, number_of(user), record)
            record.discard(entry)


def _withdraw_loopback6(
    netlink: NetlinkSocket, ifindex: int, user: str, record: set[Entry]
) -> None:
    """Note that a user needs the route no more, which goes with its last one."""
    users = {entry for entry in record if entry.what == _LOOPBACK6 and entry[2] == ifindex}
    mine = {entry for entry in users if entry.user == user}
    record -= mine
    if users == mine:
        remove_route(netlink, ifindex)


def _withdraw_guard(netlink: NetlinkSocket, ifindex: int, number: int, record: set[Entry]) -> None:
    """Take one guard away; before the last one, what it guards is closed."""
    there = guards(netlink, ifindex)
    if any(guard.number != number for guard in there):
        remove_guard(netlink, ifindex, number)
        return
    if any(guard.opened for guard in there):
        _close(ifindex)
    remove_guard(netlink, ifindex, number)
    place = Entry("clsact", "", ifindex)
    if place in record:
        remove_place(netlink, ifindex)
        record.discard(place)


def _close_renamed(netlink: NetlinkSocket, record: set[Entry]) -> None:
    """Close the bridges that we have opened and that are called otherwise by now."""
    names = _names_of({entry.ifindex for entry in record})
    for entry in [entry for entry in record if entry.what == _LOOPBACK6]:
        if names[entry.ifindex] != entry.interface:
            record.discard(entry)
            if names[entry.ifindex] is not None:
                remove_route(netlink, entry.ifindex)
    for entry in [entry for entry in record if entry.what == _LOCALNET]:
        name = names[entry.ifindex]
        if name == entry.interface:
            continue
        if name is not None:
            logger.warning("bridge %s is %s now: closed its 127.0.0.0/8", entry.interface, name)
            _close(entry.ifindex)
            for guard in guards(netlink, entry.ifindex):
                _withdraw_guard(netlink, entry.ifindex, guard.number, record)
        record.discard(entry)
    # One that is called otherwise has its containers still.
    record -= {e for e in record if e.what in ("clsact", _SERVED) and names[e.ifindex] is None}


def _close(ifindex: int) -> None:
    name = _name_of(ifindex)
    if name is not None:
        with suppress(InterfaceError):  # it goes at this moment
            sysctl.write("0", "net", "ipv4", "conf", name, "route_localnet")


def _names_of(indexes: set[int]) -> dict[int, str | None]:
    """The names of interfaces by one socket: a quarter of the time of one for each."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        number = any_socket.fileno()
        return {index: _asked(number, index) for index in indexes}


def _asked(number: int, index: int) -> str | None:
    try:
        found = fcntl.ioctl(number, _GET_NAME, _REQUEST.pack(b"", index))
    except OSError:
        return None
    return found[:16].rstrip(b"\0").decode(errors="surrogateescape")


def _name_of(ifindex: int) -> str | None:
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        return None

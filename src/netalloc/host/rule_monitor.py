"""Being told by the kernel that firewall rules have changed.

The kernel multicasts every change of nftables, which is also what iptables-nft writes.
Of iptables-legacy it tells only the audit log, and that in the first network
namespace only, where auditing is switched on.
"""

import errno
import os
import select
import socket
from collections.abc import Collection
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv6Address
from threading import Lock
from typing import NamedTuple

from netalloc.host.bridge_ports import NEW_LINK, parse
from netalloc.host.netlink import (
    NETLINK_NETFILTER,
    NETLINK_ROUTE,
    NetlinkError,
    NetlinkSocket,
    explaining,
)
from netalloc.host.netlink_messages import attributes
from netalloc.locks import locked

_GROUP = 1 << 6  # NFNLGRP_NFTABLES is the seventh
_LINKS = 1 << 0  # RTNLGRP_LINK is the first
_ADDRESSES = 1 << 4 | 1 << 8  # RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR
_DELETE_ADDRESS, _LOCAL, _ADDRESS = 21, 2, 1  # IFA_LOCAL is of IPv4 alone
_SUBSYSTEM = 10
_FAMILIES = (1, 2)  # inet, which is ours, and ip, where iptables-nft writes
_TABLE = 1  # every nftables message but that of a generation names its table so
_SET = 2  # and one of elements their set
_GENERATION = 0x0F
_ELEMENTS = (12, 14)  # NFT_MSG_NEWSETELEM, NFT_MSG_DELSETELEM
_ENDS = (2, 5, 8, 11)  # NFT_MSG_DELTABLE, of a chain, a rule, a set

ELEMENTS, RULES, ANYTHING = 1, 2, 3


class Watched(NamedTuple):
    """What counts as a change beside the rules.

    A port that joins the bridge of number `ports_of` and is not in hairpin mode, and the end of
    one of these `addresses` on an interface. Of the tables called `structure`, of whatever family,
    the end of any part but of elements.
    """

    ports_of: int | None = None
    addresses: tuple[IPv4Address | IPv6Address, ...] = ()
    structure: str = ""


NOTHING = Watched()


class RuleMonitor:
    """Wakes up when another program changes one of the named tables of some families.

    `own` are port ids whose changes do not count: those of our own sockets. It listens
    from its making on, in the network namespace of that moment, so that no change between
    two waits is missed. What is `watched` besides counts as a change, too. Changes of elements
    of the `maps` are told from others. Raises CommandError without the privilege.
    """

    def __init__(
        self,
        tables: Collection[str],
        own: Collection[int] = (),
        *,
        watched: Watched = NOTHING,
        maps: Collection[str] = (),
        families: Collection[int] = _FAMILIES,
    ) -> None:
        self._tables = frozenset(name.encode() + b"\0" for name in tables)
        self._maps = frozenset(name.encode() + b"\0" for name in maps)
        self._families = frozenset(families)
        self._bridge = watched.ports_of
        self._structure = watched.structure.encode() + b"\0"
        self._addresses = frozenset([one.packed for one in watched.addresses])
        groups = _LINKS * (watched.ports_of is not None) | _ADDRESSES * bool(watched.addresses)
        with explaining("a socket to watch rules"), ExitStack() as stack:
            self._netlink = NetlinkSocket(NETLINK_NETFILTER, _GROUP)
            stack.callback(self._netlink.close)
            if own:
                self._netlink.attach_filter(_all_but(own))
            self._links: NetlinkSocket | None = None
            if groups:
                self._links = NetlinkSocket(NETLINK_ROUTE, groups)
                stack.callback(self._links.close)
            try:
                self._stopped, self._stop = os.pipe2(os.O_CLOEXEC)
            except OSError as error:
                raise NetlinkError(error.errno or errno.EMFILE) from None
            stack.pop_all()
        self._pipe = [self._stopped, self._stop]
        self._closed = False
        self._lock = Lock()  # a number of a closed file may be another file's by now

    def wait(self) -> int:
        """Block until one of the tables has changed; 0 once `stop` was called.

        ELEMENTS where only elements of the maps have, otherwise RULES; ANYTHING where a port
        has joined, an address or part of a structure has gone, or the kernel has lost events
        because there were too many. A burst of changes is one.
        """
        poll = select.poll()
        poll.register(self._netlink, select.POLLIN)
        poll.register(self._stopped, select.POLLIN)
        if self._links is not None:
            poll.register(self._links, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if self._stopped in ready:
                return 0
            if found := self._concerned():
                return found

    @locked
    def stop(self) -> None:
        """Make `wait` return false, now and later; may be called from any thread."""
        if not self._closed:
            os.write(self._stop, b".")

    @locked
    def close(self) -> None:
        """Give back the socket; not while another thread waits. A second time is no error."""
        self._closed = True
        self._netlink.close()
        if self._links is not None:
            self._links.close()
        while self._pipe:
            os.close(self._pipe.pop())

    def _concerned(self) -> int:
        try:
            events = self._netlink.events()
            joined = self._links.events() if self._links is not None else []
        except NetlinkError as error:
            if error.errno == errno.ENOBUFS:
                return ANYTHING
            raise error.explained("watching rules") from error
        if any(self._is_of_us(kind, body) for kind, body in joined):
            return ANYTHING
        return max((self._kind(kind, body) for kind, body in events), default=0)

    def _is_of_us(self, kind: int, body: bytes) -> bool:
        """Whether a port has joined, or an address has gone."""
        if kind == _DELETE_ADDRESS:
            parts = attributes(body, 8)
            return (parts.get(_LOCAL) or parts.get(_ADDRESS)) in self._addresses
        if kind != NEW_LINK or self._bridge is None:
            return False
        port = parse(body)
        return port is not None and port.bridge == self._bridge and not port.hairpin

    def _kind(self, kind: int, body: bytes) -> int:
        """What an event changes: 0 where it is none of our tables."""
        what = kind & 0xFF
        if kind >> 8 != _SUBSYSTEM or what == _GENERATION:
            return 0
        if what in _ENDS and attributes(body, 4).get(_TABLE) == self._structure:
            return ANYTHING
        if body[0] not in self._families:
            return 0
        found = attributes(body, 4)
        if found.get(_TABLE) not in self._tables:
            return 0
        return ELEMENTS if what in _ELEMENTS and found.get(_SET) in self._maps else RULES


def _all_but(ports: Collection[int]) -> list[tuple[int, int, int, int]]:
    """A socket filter that drops what these port ids caused: we are not even woken for it.

    All messages of a datagram are of one transaction and thus of one sender. A word is
    loaded as if it were in network order, which the sender's number is not.
    """
    rest = range(len(ports) - 1, -1, -1)
    return [
        (0x20, 0, 0, 12),  # A = nlmsg_pid
        *[(0x15, left + 1, 0, socket.htonl(port)) for port, left in zip(ports, rest, strict=True)],
        (0x06, 0, 0, 0xFFFFFFFF),  # the whole datagram
        (0x06, 0, 0, 0),  # nothing of it
    ]

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
from threading import Lock

from netalloc.host.bridge_ports import NEW_LINK, parse
from netalloc.host.netlink import (
    NETLINK_NETFILTER,
    NETLINK_ROUTE,
    NetlinkError,
    NetlinkSocket,
    attributes,
    explaining,
)

_GROUP = 1 << 6  # NFNLGRP_NFTABLES is the seventh
_LINKS = 1 << 0  # RTNLGRP_LINK is the first
_SUBSYSTEM = 10
_FAMILIES = (1, 2)  # inet, which is ours, and ip, which iptables-nft writes
_TABLE = 1  # every nftables message but that of a generation names its table so
_GENERATION = 0x0F


class RuleMonitor:
    """Wakes up when another program changes one of the named `ip` or `inet` tables.

    `own` are port ids whose changes do not count: those of our own sockets. It listens
    from its making on, in the network namespace of that moment, so that no change between
    two waits is missed. `ports_of` is the number of a bridge: a port that joins it and is not
    in hairpin mode counts as a change, too. Raises CommandError without the privilege.
    """

    def __init__(
        self, tables: Collection[str], own: Collection[int] = (), *, ports_of: int | None = None
    ) -> None:
        self._tables = frozenset(name.encode() + b"\0" for name in tables)
        self._bridge = ports_of
        with explaining("a socket to watch rules"), ExitStack() as stack:
            self._netlink = NetlinkSocket(NETLINK_NETFILTER, _GROUP)
            stack.callback(self._netlink.close)
            if own:
                self._netlink.attach_filter(_all_but(own))
            self._links: NetlinkSocket | None = None
            if ports_of is not None:
                self._links = NetlinkSocket(NETLINK_ROUTE, _LINKS)
                stack.callback(self._links.close)
            try:
                self._stopped, self._stop = os.pipe2(os.O_CLOEXEC)
            except OSError as error:
                raise NetlinkError(error.errno or errno.EMFILE) from None
            stack.pop_all()
        self._closed = False
        self._lock = Lock()  # a number of a closed file may be another file's by now

    def wait(self) -> bool:
        """Block until one of the tables has changed; false once `stop` was called.

        A burst of changes is one. When the kernel has lost events because there were too
        many, that counts as a change, too.
        """
        poll = select.poll()
        poll.register(self._netlink, select.POLLIN)
        poll.register(self._stopped, select.POLLIN)
        if self._links is not None:
            poll.register(self._links, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if self._stopped in ready:
                return False
            if self._concerned():
                return True

    def stop(self) -> None:
        """Make `wait` return false, now and later; may be called from any thread."""
        with self._lock:
            if not self._closed:
                os.write(self._stop, b".")

    def close(self) -> None:
        """Give back the socket; not while another thread waits. A second time is no error."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._netlink.close()
            if self._links is not None:
                self._links.close()
            for fd in (self._stopped, self._stop):
                os.close(fd)

    def _concerned(self) -> bool:
        try:
            events = self._netlink.events()
            joined = self._links.events() if self._links is not None else []
        except NetlinkError as error:
            if error.errno == errno.ENOBUFS:
                return True
            raise error.explained("watching rules") from error
        return any(
            kind == NEW_LINK
            and (port := parse(body)) is not None
            and port.bridge == self._bridge
            and not port.hairpin
            for kind, body in joined
        ) or any(
            kind >> 8 == _SUBSYSTEM
            and kind & 0xFF != _GENERATION
            and body[0] in _FAMILIES
            and attributes(body, 4).get(_TABLE) in self._tables
            for kind, body in events
        )


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

"""The least that attaching can cost: the same messages, packed beforehand, and no more.

One socket of the host's and one in each namespace; answers are read and looked at for errors, and
that is all. What has the kernel finish an interface's coming up is among the messages: without it
the first packets would be lost, and the work be done after the clock has stopped.
"""

import fcntl
import os
import socket
import struct
from collections.abc import Sequence

from netalloc.host import namespaces, rtnetlink
from netalloc.host.attach_steps import families
from netalloc.host.attaching import Bridged, Routed
from netalloc.host.endpoints import Endpoint
from netalloc.host.macs import HOST_END
from netalloc.host.netlink import NETLINK_ROUTE, NetlinkSocket, Request
from netalloc.host.netlink_messages import ACK, message
from netalloc.host.taps import RoutedTaps

CHUNK = 32


def packed(requests: Sequence[Request]) -> bytes:
    """Many messages as one, of which the last asks for an answer; errors come unasked."""
    last = len(requests) - 1
    return b"".join(
        [
            message(kind, flags | (ACK if i == last else 0), i, body)
            for i, (kind, flags, body) in enumerate(requests)
        ]
    )


def opened() -> socket.socket:
    """A netlink socket of the namespace that the thread is in."""
    found = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ROUTE)
    found.setsockopt(socket.SOL_SOCKET, 33, 4 << 20)  # SO_RCVBUFFORCE
    found.setsockopt(socket.SOL_SOCKET, 32, 4 << 20)  # SO_SNDBUFFORCE
    found.bind((0, 0))
    return found


def send(netlink: socket.socket, batch: bytes) -> None:
    """Have it done."""
    netlink.send(batch)
    kind, error = 0, 0
    while kind != 2:
        kind, error = struct.unpack_from("=4xH10xi", netlink.recv(1 << 16))
    assert error == 0, os.strerror(-error)


class Bare:
    """A number of containers to be attached, routed or on a bridge, with all bytes ready."""

    def __init__(
        self, endpoints: Sequence[Endpoint], group: int, bridge_index: int | None = None
    ) -> None:
        self._group, self._bridge = group, bridge_index
        self._way = way = (
            Routed(endpoints, group, None)
            if bridge_index is None
            else Bridged(endpoints, bridge_index, group, hairpin=False, static=False)
        )
        host = NetlinkSocket(NETLINK_ROUTE)
        way._prepare(host)
        host.close()
        self._work: list[tuple[bytes, list[tuple[int, bytes]], bytes]] = []
        for start in range(0, len(endpoints), CHUNK):
            part = endpoints[start : start + CHUNK]
            outer = packed([request for one in part for request in self._outer_of(one)])
            inner = []
            for one in part:
                steps = [step.request for step in way._inner(one, 2)]
                inner.append((one.netns, packed(steps)))
            finish = [(rtnetlink.GET_LINK, 0, rtnetlink.get_link(one.index)) for one in part]
            self._work.append((outer, inner, packed(finish)))

    def _outer_of(self, one: Endpoint) -> list[Request]:
        return [step.request for step in self._way._whole(one)]

    def run(self) -> None:
        """In a thread of its own, which ends up in the last namespace."""
        host = opened()
        for outer, inner, finish in self._work:
            send(host, outer)
            for netns, batch in inner:
                namespaces.setns(netns, namespaces.CLONE_NEWNET)
                inside = opened()
                send(inside, batch)
                inside.close()
            send(host, finish)
        host.close()


class Plain(Bare):
    """The same by the messages that anyone would send, without what ours spare the kernel.

    A link is up before the kernel has looked at it once, counts as up, and each container has a
    route of each family on the host.
    """

    def _outer_of(self, one: Endpoint) -> list[Request]:
        mtu = rtnetlink.number(rtnetlink.MTU, 1500)
        peer = rtnetlink.peer_end(one.ifname, 1500)
        if self._bridge is None:
            mac = rtnetlink.attribute(rtnetlink.MAC, HOST_END)
            end = mtu + mac + rtnetlink.number(rtnetlink.GROUP, self._group)
            settings = rtnetlink.routed_settings(rp_filter=1, with_v6=True)
        else:
            end = mtu + rtnetlink.number(rtnetlink.MASTER, self._bridge)
            settings = rtnetlink.NO_LINK_LOCAL
        found = [
            rtnetlink.create_veth(one.index, one.name, end, peer, one.mac, one.netns),
            rtnetlink.set_link(one.index, settings),
            rtnetlink.set_up(one.index),
        ]
        for af, address, gateway in families(one):
            if self._bridge is None:
                source = None if gateway is None else gateway.packed
                found.append(rtnetlink.host_route(one.index, af, address.packed, source))
            where = self._bridge or one.index
            found.append(rtnetlink.add_neighbour(where, af, address.packed, one.mac))
        return found


class BareTaps:
    """The same for taps behind routes."""

    def __init__(self, endpoints: Sequence[Endpoint], group: int) -> None:
        way = RoutedTaps(endpoints, group, None)
        host = NetlinkSocket(NETLINK_ROUTE)
        way._prepare(host)
        host.close()
        self._names = [
            (struct.pack("=I", one.index), struct.pack("16sH22x", one.name.encode(), 0xD002))
            for one in endpoints
        ]
        self._batch = packed([step.request for one in endpoints for step in way._whole(one)])

    def run(self) -> None:
        """All of them."""
        host = opened()
        fds = []
        for index, name in self._names:
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
            fds.append(fd)
            fcntl.ioctl(fd, 0x400454DA, index)
            fcntl.ioctl(fd, 0x400454CA, name)
        send(host, self._batch)
        for fd in fds:
            fcntl.ioctl(fd, 0x400454CB, 1)
            os.close(fd)
        host.close()

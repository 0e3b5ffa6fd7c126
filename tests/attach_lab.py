"""A private host for tests of attaching: namespaces, endpoints, and who answers where."""

import os
import socket
from contextlib import ExitStack, nullcontext
from ipaddress import ip_address, ip_interface
from pathlib import Path

from lab import Private, Servers
from netalloc.host import namespaces, rtnetlink
from netalloc.host.attached import detach_present, present
from netalloc.host.endpoints import Endpoint
from netalloc.host.links import Links
from netalloc.host.macs import mac_of
from netalloc.host.netlink import NETLINK_ROUTE, NetlinkSocket

GROUP = 0x4E41
FIRST = 0x10000
GATEWAYS = (ip_address("10.88.0.1"), ip_address("fd00:88::1"))


class AttachLab(ExitStack):
    """A host whose `lo` has the gateways, with a bridge br0 where asked; a context manager."""

    def __init__(self, *, bridge=False):
        super().__init__()
        self._with_bridge = bridge

    def __enter__(self):
        super().__enter__()
        try:
            self.enter_context(Private())
            self.servers = self.enter_context(Servers())
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def _build(self):
        holder = "lo"
        with Links() as links:
            links.set_up("lo")
            if self._with_bridge:
                holder = "br0"
                links.create_bridge("br0")
        self.holder = socket.if_nametoindex(holder)
        bits = (16, 64) if self._with_bridge else (32, 128)
        host = NetlinkSocket(NETLINK_ROUTE)
        for af, gateway, prefix in zip((2, 10), GATEWAYS, bits, strict=True):
            request = rtnetlink.add_address(self.holder, af, gateway.packed, prefix)
            assert host.outcomes([request]) == [None]
        host.close()
        for path in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            Path("/proc/sys/net", path).write_text("1")

    def namespace(self, name):
        """A descriptor of a new namespace, closed at the end."""
        namespaces.create(name)
        fd = os.open(namespaces.path(name), os.O_RDONLY | os.O_CLOEXEC)
        self.callback(os.close, fd)
        return fd

    def endpoint(self, number, fd=-1, **changed):
        """What the container of that number is to get, in a namespace."""
        return endpoint(number, fd, **changed)

    def endpoints(self, count, prefix="c"):
        """With a new namespace each."""
        return [self.endpoint(i, self.namespace(f"{prefix}{i}")) for i in range(count)]

    def serve(self, name, kind, family, port=80):
        """Answer with the name of the namespace, None for the host."""
        place = namespaces.inside(name) if name else nullcontext()
        with place:
            server = socket.socket(family, kind)
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        self.servers.add(server, name or "host", ("::" if family == socket.AF_INET6 else "", port))


def endpoint(number, fd=-1, **changed):
    v4 = ip_interface((GATEWAYS[0] + number + 1, 16))
    v6 = ip_interface((GATEWAYS[1] + number + 1, 64))
    values = {
        "index": FIRST + number,
        "name": f"na{number}",
        "alias": f"netalloc:test:{v4.ip}",
        "addresses": (v4, v6),
        "gateways": GATEWAYS,
        "mac": mac_of(v4.ip),
        "netns": fd,
    }
    return Endpoint(**{**values, **changed})


def ask(name, kind, family, to, timeout=2.0):
    """Who answers there, asked from a namespace or the host, and as whom it saw the asker."""
    place = namespaces.inside(name) if name else nullcontext()
    with place:
        client = socket.socket(family, kind)
    with client:
        client.settimeout(timeout)
        client.connect((str(to), 80))
        client.send(b"?")
        who, _, seen = client.recv(200).decode().partition(" ")
        return who, seen


def sweep():
    """What is to be done after a crash: all that is left of ours goes."""
    left = present("netalloc:test:")
    detach_present(left.values())
    return len(left)

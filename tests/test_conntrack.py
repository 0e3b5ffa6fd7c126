"""Flows that were open before a mapping changed reach whom they should afterwards."""

import errno
import logging
import re
import socket
from contextlib import ExitStack, closing, suppress
from ipaddress import IPv4Address

import pytest

from netalloc.errors import CommandError, InterfaceError
from netalloc.host import conntrack, flow_messages, neighbours, netns
from netalloc.host.netlink import NETLINK_NETFILTER, NetlinkError, NetlinkSocket
from netalloc.host.netlink_messages import attributes
from netalloc.host.shown_flows import shown_flows
from netalloc.model import PortMapping
from netalloc.portmap.mapper import PortMapper

pytestmark = pytest.mark.root


class Flow:
    """A udp client that keeps its socket, so that all it sends is one flow."""

    def __init__(self, lab, place, to):
        self.socket = lab.socket(place, "udp")
        self.socket.connect(to)

    def ask(self):
        """Who answers; there must be somebody."""
        # The first send may only report that the last one was refused.
        return self._ask(5) or self._ask(5)

    def silent(self):
        """Whether nobody answers."""
        return self._ask(0.2) is self._ask(0.2) is None

    def _ask(self, patience):
        # An error may have been told in place of an answer, which is then still there.
        self.socket.setblocking(False)
        with suppress(OSError):
            while self.socket.recv(200):
                pass
        self.socket.settimeout(patience)
        try:
            self.socket.send(b"?")
            return self.socket.recv(200).decode().split()[0]
        except OSError:
            return None


class Connection:
    """Both ends of a tcp connection."""

    def __init__(self, lab, listener, place, to):
        with ExitStack() as stack:
            self.client = stack.enter_context(lab.socket(place, "tcp"))
            self.client.settimeout(5)
            self.client.connect(to)
            self.server, _ = listener.accept()
            self.server.settimeout(1)
            stack.pop_all()

    def works(self):
        self.client.send(b"?")
        try:
            return self.server.recv(1) == b"?"
        except TimeoutError:
            return False

    def close(self):
        self.client.close()
        self.server.close()


def listen(lab, place, port):
    listener = lab.socket(place, "tcp")
    listener.settimeout(5)
    listener.bind(("0.0.0.0", port))
    listener.listen()
    return listener


@pytest.fixture
def flow(nft_lab):
    with ExitStack() as stack:

        def make(*arguments):
            made = Flow(nft_lab, *arguments)
            stack.callback(made.socket.close)
            return made

        yield make


@pytest.fixture(params=["nftables", "iptables"])
def mapper(request, nft_lab):
    with PortMapper(request.param, bridge=nft_lab.bridge, network=nft_lab.network) as mapper:
        yield mapper


@pytest.fixture(params=["shown", "filtered", "listed", "older kernel"])
def way(request, monkeypatch):
    """Each way to find the flows: /proc, the kernel's filter, a listing, no filter in deletions."""
    if request.param != "shown":
        monkeypatch.setattr(conntrack, "_SHOWN", -1)
    if request.param == "listed":
        monkeypatch.setattr(conntrack.Flows, "_walks", lambda *_: False)
    if request.param == "older kernel":
        call = NetlinkSocket.call

        def refuse(self, kind, body, flags=0):
            if kind == flow_messages.DELETE and flow_messages.FILTER in attributes(body, 4):
                raise NetlinkError(errno.EINVAL)
            return call(self, kind, body, flags)

        monkeypatch.setattr(NetlinkSocket, "call", refuse)
    return request.param


def ids(lab):
    """The kernel's numbers of the flows with ports, as another program sees them."""
    lists = [lab.run("conntrack", "-L", "-o", "id", "-p", protocol) for protocol in ("tcp", "udp")]
    return set(re.findall(r"\bid=(\d+)", "".join(lists)))


def test_udp_flows_follow_map_remap_and_unmap(nft_lab, mapper, flow, way):
    lab = nft_lab
    c0, c1 = lab.containers
    for place in (c0, c1):
        lab.serve(place, "udp", 80)
    clients = {
        "outside": flow(lab.outside, (lab.address, 8080)),
        "itself": flow(lab.host, (lab.gateway, 8080)),
        "loopback": flow(lab.host, ("127.0.0.1", 8080)),
        "container": flow(c1, (lab.gateway, 8080)),
    }

    def answers():
        return {name: client.ask() for name, client in clients.items()}

    def silent():
        return all(client.silent() for client in clients.values())

    assert silent()  # the flows begin, and nobody is there
    mapper.map(8080, (c0.ip, 80), "udp")
    assert answers() == dict.fromkeys(clients, "c0")
    mapper.unmap(8080, "udp")
    assert silent()
    mapper.map(8080, (c1.ip, 80), "udp")
    assert answers() == dict.fromkeys(clients, "c1")
    mapper.unmap(8080, "udp")
    lab.serve(lab.host, "udp", 8080)
    assert answers() == dict.fromkeys(clients, "host")


def test_without_the_flush_they_do_not(nft_lab, flow, monkeypatch):
    """What the others guard against is real."""
    lab = nft_lab
    monkeypatch.setattr(conntrack.Flows, "flush", lambda *_, **__: None)
    with PortMapper("nftables", bridge=lab.bridge, network=lab.network) as mapper:
        for place in lab.containers:
            lab.serve(place, "udp", 80)
        early = flow(lab.outside, (lab.address, 8080))
        assert early.silent()
        mapper.map(8080, (lab.containers[0].ip, 80), "udp")
        assert early.silent()
        late = flow(lab.outside, (lab.address, 8080))
        assert late.ask() == "c0"
        mapper.unmap(8080, "udp")
        assert late.ask() == "c0"
        mapper.map(8080, (lab.containers[1].ip, 80), "udp")
        assert late.ask() == "c0"


def test_other_flows_live_on(nft_lab, flow, way):
    lab = nft_lab
    c0, c1 = lab.containers
    lab.serve(c0, "udp", 8080)
    lab.serve(c1, "udp", 80)
    for place in (lab.outside, lab.host):
        lab.serve(place, "udp", 8080)
    with ExitStack() as stack:
        mapper = PortMapper("nftables", bridge=lab.bridge, network=lab.network)
        stack.enter_context(mapper)
        mapper.map(9000, (c0.ip, 8080), "udp")  # the same port, but on the container's side
        mapper.map(8080, (c1.ip, 80), "udp", lab.second_address)
        others = {
            "a mapping to that container port": flow(lab.outside, (lab.address, 9000)),
            "the port on another address": flow(lab.outside, (lab.second_address, 8080)),
            "a container's way out": flow(c1, (lab.outside.ip, 8080)),
            "the host's way out": flow(lab.host, (lab.outside.ip, 8080)),
            "the container itself": flow(lab.host, (c0.ip, 8080)),
        }
        connections = []
        for server, client, ip in (
            (lab.outside, c1, lab.outside.ip),  # a container's way out
            (lab.host, lab.outside, lab.address),  # the host's own service
        ):
            listener = stack.enter_context(listen(lab, server, 8080))
            connection = Connection(lab, listener, client, (ip, 8080))
            connections.append(stack.enter_context(closing(connection)))
        expected = ["c0", "c1", "outside", "outside", "c0"]
        assert [client.ask() for client in others.values()] == expected
        before = ids(lab)
        ours = flow(lab.outside, (lab.address, 8080))
        assert ours.ask() == "host"
        for protocol in ("udp", "tcp"):
            mapper.map(8080, (c1.ip, 80), protocol, lab.address)
            mapper.unmap(8080, protocol, lab.address)
        assert len(before) == len(others) + len(connections)
        assert before <= ids(lab)
        assert all(connection.works() for connection in connections)


def test_the_way_out_to_the_same_port_lives_on(nft_lab, flow, way):
    lab = nft_lab
    c0 = lab.containers[0]
    lab.serve(lab.outside, "udp", 8080)
    with PortMapper("nftables", bridge=lab.bridge, network=lab.network) as mapper:
        out = [flow(place, (lab.outside.ip, 8080)) for place in (lab.host, c0)]
        assert [client.ask() for client in out] == ["outside"] * 2
        before = ids(lab)
        assert len(before) == 2
        mapper.map(8080, (c0.ip, 80), "udp")
        mapper.unmap(8080, "udp")
        assert ids(lab) == before


def test_a_tcp_connection_ends_with_its_mapping(nft_lab, way):
    lab = nft_lab
    c0 = lab.containers[0]
    with (
        listen(lab, c0, 80) as listener,
        PortMapper("nftables", bridge=lab.bridge, network=lab.network) as mapper,
    ):
        mapper.map(8080, (c0.ip, 80))
        mapper.map(8081, (c0.ip, 80))
        with (
            closing(Connection(lab, listener, lab.outside, (lab.address, 8080))) as ours,
            closing(Connection(lab, listener, lab.outside, (lab.address, 8081))) as other,
        ):
            assert ours.works() and other.works()
            mapper.unmap(8080)
            assert other.works()
            assert not ours.works()
            with pytest.raises(ConnectionResetError):  # the host itself has answered
                ours.client.recv(1)


def test_blocks_and_batches(nft_lab, flow):
    lab = nft_lab
    c0, c1 = lab.containers
    for port in (7000, 7049, 7099):
        lab.serve(c0, "udp", port)
        lab.serve(c1, "udp", port)
    with PortMapper("nftables", bridge=lab.bridge, network=lab.network) as mapper:
        clients = [flow(lab.outside, (lab.address, port)) for port in (7000, 7049, 7099)]
        assert all(client.silent() for client in clients)
        mapper.map(7000, (c0.ip, 7000), "udp", count=100)
        assert [client.ask() for client in clients] == ["c0"] * 3
        mapper.unmap(7000, "udp")
        assert all(client.silent() for client in clients)
        batch = [PortMapping(port, (c1.ip, port), "udp") for port in range(7000, 7100)]
        mapper.map_many(batch)
        assert [client.ask() for client in clients] == ["c1"] * 3
        mapper.unmap_many(batch)
        assert all(client.silent() for client in clients)


def test_the_quick_look_and_the_whole_one_agree(nft_lab, flow):
    lab = nft_lab
    clients = [flow(lab.host, (lab.outside.ip, 8080)) for _ in range(5)]
    lab.run("nft", "add", "table", "ip", "t")  # flows are tracked where somebody wants them
    lab.run("nft", "add chain ip t c { type filter hook output priority 0; ct state new; }")
    for client in clients:
        client.silent()
    lab.serve(lab.outside, "tcp", 80)
    assert lab.ask(lab.host, "tcp", (lab.outside.ip, 80))
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as ping:
        ping.sendto(b"\x08\0\xf7\xff\0\0\0\0", (lab.outside.ip, 0))
    netlink = NetlinkSocket(NETLINK_NETFILTER)
    flows = netlink.dump(flow_messages.GET, flow_messages.IPV4)[0]
    netlink.close()
    assert len(flows) >= 7  # the bridge's own multicast may be among them
    whole = [found for body in flows if (found := flow_messages.parse(body))]
    assert len(whole) == 6  # a ping has no ports
    assert all(
        body.startswith(flow_messages.USUAL[2].head, 4)
        for body in flows
        if flow_messages.parse(body)
    )
    for number, port in ((17, 8080), (6, 80), (6, 8080), (1, 0)):
        wanted = [found for found in whole if (found.number, found.port) == (number, port)]
        assert list(flow_messages.among(flows, {(number, port)}, 2)) == wanted


@pytest.fixture
def flows(nft_lab):
    with closing(conntrack.Flows()) as flows:
        yield flows


def test_what_proc_shows_is_what_is_listed(nft_lab, flows, flow):
    lab = nft_lab
    c0 = lab.containers[0]
    lab.serve(lab.host, "tcp", 80)
    with PortMapper("nftables", bridge=lab.bridge, network=lab.network) as mapper:
        mapper.map(8080, (c0.ip, 80), "udp")
        assert lab.ask(lab.outside, "tcp", (lab.address, 80))
        for to in ((lab.address, 8080), (lab.address, 9000), (lab.second_address, 9000)):
            assert flow(lab.outside, to).silent()
        netlink = NetlinkSocket(NETLINK_NETFILTER)
        bodies = netlink.dump(flow_messages.GET, flow_messages.IPV4)[0]
        netlink.close()
        listed = filter(None, map(flow_messages.parse, bodies))
        wanted = {(one.number, one.ip, one.port, one.server[0]) for one in listed}
        assert {port for _, _, port, _ in wanted} == {80, 8080, 9000}
        assert {server for *_, server in wanted} >= {IPv4Address(c0.ip).packed}
        assert set(shown_flows(netns.current())) == wanted
        assert flows.count() == len(bodies)
    elsewhere = netns.current()._replace(inode=1)
    assert shown_flows(elsewhere) is None


def test_where_there_are_few_flows_it_makes_no_difference_how_many_addresses(
    nft_lab, flow, monkeypatch
):
    """A mapping asks the kernel as often with 2 addresses of the host as with 60."""
    lab = nft_lab
    asked = []

    def counted(way):
        def count(self, kind, *rest):
            asked.append(kind)
            return way(self, kind, *rest)

        return count

    for name in ("call", "dump"):
        monkeypatch.setattr(NetlinkSocket, name, counted(getattr(NetlinkSocket, name)))

    def questions(port):
        asked.clear()
        mapper.map(port, (lab.containers[0].ip, 80), "udp")
        return list(asked)

    with PortMapper("nftables", bridge=lab.bridge, network=lab.network) as mapper:
        mapper.setup()
        assert flow(lab.outside, (lab.address, 9000)).silent()
        few = questions(8080)
        for i in range(60):
            lab.run("ip", "address", "add", f"198.18.0.{i + 1}/32", "dev", "uplink")
        assert questions(8081) == few
        assert questions(9000) == [*few, 26, flow_messages.DELETE]  # is it our own; its flows


def test_a_kernel_without_a_flow_table_is_no_error(flows, monkeypatch, caplog):
    def refuse(*_):
        raise NetlinkError(errno.EINVAL)

    for method in ("call", "dump"):
        monkeypatch.setattr(NetlinkSocket, method, refuse)
    with caplog.at_level(logging.WARNING):
        for added in (True, False):
            flows.flush([PortMapping(53, ("10.0.0.2", 53), "udp")], added=added)
    assert caplog.text.count("lists no flows") == 2


def test_a_missing_privilege_is_an_error(flows, monkeypatch):
    def refuse(*_):
        raise NetlinkError(errno.EPERM)

    for method in ("call", "dump"):
        monkeypatch.setattr(NetlinkSocket, method, refuse)
    for added in (True, False):
        with pytest.raises(CommandError, match="CAP_NET_ADMIN"):
            flows.flush([PortMapping(53, ("10.0.0.2", 53), "udp")], added=added)
    flows.flush([PortMapping(80, ("10.0.0.2", 80))], added=True)  # nothing to look for


def test_the_next_holder_of_an_address_is_not_spoken_to_by_the_last_ones_mac(nft_lab):
    lab = nft_lab
    c0, c1 = lab.containers
    for place in (c0, c1):
        lab.serve(place, "tcp", 80)
        assert lab.ask(lab.host, "tcp", (place.ip, 80))[0] == place.name
    # c1 takes over the address of c0, and says nothing about it.
    lab.run("ip", "-n", "c0", "address", "del", f"{c0.ip}/16", "dev", "eth0")
    lab.run("ip", "-n", "c1", "address", "add", f"{c0.ip}/16", "dev", "eth0")
    assert lab.reaches(lab.host, "tcp", (c0.ip, 80)) is None
    gone = [IPv4Address(c0.ip), IPv4Address("10.200.9.9")]
    assert neighbours.forget(lab.bridge, gone) == 1
    assert lab.ask(lab.host, "tcp", (c0.ip, 80))[0] == "c1"
    assert neighbours.forget(lab.bridge, [IPv4Address(c1.ip)]) == 1
    with pytest.raises(InterfaceError, match="nosuch"):
        neighbours.forget("nosuch", gone)

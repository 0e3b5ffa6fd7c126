"""KernelMappings: a batch is made with its flows flushed or not at all, by one master, here."""

import errno
import gc
import os
import resource
import sys
import threading
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from faults import FaultyBackend
from lab import Private
from netalloc import iptables
from netalloc.errors import (
    CommandError,
    InterfaceError,
    InUseError,
    InvalidValueError,
    NetallocError,
)
from netalloc.host.conntrack import Flows
from netalloc.host.links import Links, interface_address
from netalloc.host.netlink import NetlinkError, NetlinkSocket
from netalloc.model import PortMapping
from netalloc.portmap.kernel import KernelMappings
from netalloc.portmap.link import Link
from netalloc.portmap.mapper import PortMapper
from netalloc.portmap.null import Null

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

ONE, TWO = (PortMapping(port, ("10.200.0.2", 80), "udp") for port in (8080, 8081))
MOVED = PortMapping(8080, ("10.200.0.3", 80), "udp")


@pytest.fixture(params=["nftables", "iptables"])
def kernel(request, nft_lab):
    """A real backend that has ONE."""
    made = KernelMappings(request.param, link=Link(nft_lab.bridge), network=nft_lab.network)
    made.setup()
    made.apply([ONE])
    yield made
    made.close()


@pytest.mark.root
def test_a_flush_that_fails_undoes_the_batch(kernel, monkeypatch):
    def fails(self, mappings, *, added):
        if mappings:
            raise NetlinkError(errno.ENOBUFS).explained("flows")

    monkeypatch.setattr(Flows, "flush", fails)
    for add, remove in (([TWO], []), ([], [ONE]), ([MOVED], [ONE])):
        with pytest.raises(CommandError, match=r"flows: No buffer space available \(ENOBUFS\)"):
            kernel.apply(add, remove)
        assert kernel.present() == [ONE]


@pytest.mark.root
def test_an_undo_that_fails_is_raised_with_what_led_to_it(kernel, monkeypatch):
    apply = kernel.backend.apply

    def once(add, remove=()):
        monkeypatch.setattr(kernel.backend, "apply", fails)
        apply(add, remove)

    def fails(*_, **__):
        raise CommandError("no more")

    monkeypatch.setattr(kernel.backend, "apply", once)
    monkeypatch.setattr(Flows, "flush", fails)
    with pytest.raises(ExceptionGroup) as caught:
        kernel.apply([TWO])
    assert [str(error) for error in caught.value.exceptions] == ["no more", "no more"]


@pytest.mark.root
@pytest.mark.parametrize("free", range(8))
def test_without_file_descriptors_nothing_is_left(kernel, free):
    kernel.close()  # a process that has just begun
    before = set(Path("/proc/self/fd").iterdir())
    _, hard = limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = []
    try:
        while len(held) < 4000:
            held.append(os.open("/dev/null", os.O_RDONLY))
            if len(held) == 1:
                resource.setrlimit(resource.RLIMIT_NOFILE, (len(before) + 40, hard))
    except OSError:
        for _ in range(free):
            os.close(held.pop())
    try:
        kernel.apply([TWO])
        made = True
    except NetallocError:
        made = False
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for one in held:
            os.close(one)
    assert set(kernel.present()) == ({ONE, TWO} if made else {ONE})


@pytest.mark.root
def test_an_interrupt_undoes_the_batch_wherever_it_comes(kernel, monkeypatch):
    apply = kernel.backend.apply

    def interrupted_before(add, remove=()):
        monkeypatch.setattr(kernel.backend, "apply", apply)
        raise KeyboardInterrupt

    def interrupted_after(add, remove=()):
        monkeypatch.setattr(kernel.backend, "apply", apply)
        apply(add, remove)
        raise KeyboardInterrupt

    for interrupted in (interrupted_before, interrupted_after):
        for add, remove in (([TWO], []), ([], [ONE]), ([MOVED], [ONE])):
            monkeypatch.setattr(kernel.backend, "apply", interrupted)
            with pytest.raises(KeyboardInterrupt):
                kernel.apply(add, remove)
            assert kernel.present() == [ONE]


@pytest.mark.root
def test_flows_that_a_reconciliation_could_not_flush_are_flushed_by_the_next(kernel, monkeypatch):
    flushed = []

    def fails(self, mappings, *, added):
        if mappings and not flushed:
            flushed.append(None)
            raise CommandError("no conntrack")
        flushed.extend(mappings)

    monkeypatch.setattr(Flows, "flush", fails)
    with pytest.raises(CommandError, match="no conntrack"):
        kernel.reconcile([MOVED])
    assert kernel.present() == [MOVED]
    assert not kernel.reconcile([MOVED])
    assert flushed == [None, ONE, MOVED]


@pytest.mark.root
def test_cleanup_goes_on_and_collects(kernel, nft_lab, monkeypatch):
    def fails(*_, **__):
        raise CommandError("no conntrack")

    monkeypatch.setattr(Flows, "flush", fails)
    with pytest.raises(CommandError, match="no conntrack"):
        kernel.cleanup()
    assert kernel.present() == []
    backend = FaultyBackend()
    mappings = KernelMappings(backend)
    monkeypatch.setattr(backend, "cleanup", fails)
    mappings._forward = type("Forward", (), {"cleanup": fails})()
    with pytest.raises(ExceptionGroup) as caught:
        mappings.cleanup()
    assert len(caught.value.exceptions) == 2


def test_a_backend_has_one_master():
    backend = Null()
    first = PortMapper(backend)
    with pytest.raises(InUseError, match="null backend serves another list"):
        PortMapper(backend)
    with pytest.raises(InUseError):
        KernelMappings(backend)
    first.close()
    second = KernelMappings(backend)
    with pytest.raises(InUseError):
        first.setup()
    del second
    gc.collect()
    first.setup()


@pytest.mark.root
def test_a_thread_in_another_namespace_builds_nothing_there(kernel, nft_lab):
    kernel.close()  # so that sockets have to be opened again
    here = nft_lab.run("nft", "-s", "list", "ruleset")
    found = []

    def elsewhere():
        with Private():
            for call in (
                kernel.setup,
                kernel.cleanup,
                lambda: kernel.reconcile([]),
                lambda: kernel.apply([TWO]),
                kernel.present,
                lambda: kernel.watch(lambda: None),
            ):
                try:
                    call()
                    found.append(call)
                except NetallocError as error:
                    if "network namespace net:[" not in str(error):
                        found.append(error)
            found.extend(nft_lab.run("nft", "-s", "list", "ruleset").splitlines())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert not found
    assert nft_lab.run("nft", "-s", "list", "ruleset") == here
    kernel.apply([TWO])
    assert set(kernel.present()) == {ONE, TWO}


@pytest.mark.root
def test_what_the_kernel_refuses_is_said_in_words(nft_lab, monkeypatch):
    def refuse(*_, **__):
        raise NetlinkError(errno.ENOBUFS)

    with PortMapper("nftables") as mapper:
        for method in ("transact", "transact_one", "dump"):
            monkeypatch.setattr(NetlinkSocket, method, refuse)
        for call in (
            lambda: mapper.map(8080, ("10.200.0.2", 80)),
            mapper.backend.mappings,
            mapper.reconcile,
            mapper.backend.setup,
        ):
            with pytest.raises(CommandError, match=r"table inet netalloc.*\(ENOBUFS\)") as caught:
                call()
            assert type(caught.value) is CommandError
        monkeypatch.undo()


HOSTILE = [None, 5, 5.0, True, b"x", "", "\0", "a\nb", "\ud800", "x" * 5000, [], {}, object(), type]


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: repr(value)[:12])
def test_hostile_arguments_are_errors_of_ours(value):
    calls = [
        lambda: KernelMappings(value),
        lambda: PortMapper("null", name=value),
        lambda: PortMapper("iptables", name=value),
        lambda: PortMapper("nftables", name=value),
        lambda: PortMapper("null").map_many(value),
        lambda: PortMapper("null").map_many([value]),
        lambda: PortMapper("null").unmap_many([value]),
        lambda: PortMapper("null").reconcile([value]),
        lambda: PortMapper("null").map(value, ("10.0.0.1", 1)),
        lambda: PortMapper("null").map(1, value),
        lambda: PortMapper("null").unmap(value),
        lambda: interface_address(value),
        lambda: iptables(value),
        lambda: PortMapper("null", network=value or 5),
        lambda: PortMapper("null", bridge="" if value is None else value),
        lambda: PortMapper("null", forward=5 if value is True else value),
    ]
    for number, call in enumerate(calls):
        if (number, value) in ((4, []), (4, {})):
            continue  # no mappings are no error
        if number == 8 and type(value) is int:
            continue  # a port
        with pytest.raises(NetallocError):
            call()


NAMES = ["all", "default", ".", "..", "", "x" * 16, "a/b", "a:b", "a b", "br+", "br*", 'a"', "-a",
         "a\\", "é", "a'", "a\0", "a%d"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_no_interfaces(name):
    for call in (
        interface_address,
        lambda bridge: PortMapper("nftables", bridge=bridge, network="10.0.0.0/8"),
        lambda bridge: PortMapper("iptables", bridge=bridge, network="10.0.0.0/8"),
        lambda bridge: PortMapper("null", bridge=bridge, network="10.0.0.0/8", forward=True),
    ):
        with pytest.raises(InvalidValueError, match="interface"):
            call(name)


@pytest.mark.root
@pytest.mark.parametrize("name", ["br.1", "a@b-c_d", "#~,=^(){}[]<>", "0", "a;$&|?"])
@pytest.mark.parametrize("backend", ["nftables", "iptables-nft", "iptables-legacy"])
def test_names_that_rules_can_hold(make_lab, backend, name):
    kind, _, variant = backend.partition("-")
    make_lab(variant or "nft")
    with Links() as links:
        links.create_bridge(name, "10.9.0.1/24")
    with PortMapper(kind, bridge=name, network="10.9.0.0/24") as mapper:
        mapper.map(8080, ("10.9.0.2", 80))
        assert not mapper.reconcile()


@pytest.mark.root
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("backend", ["nftables", "iptables-nft", "iptables-legacy"])
def test_a_shifted_block_leads_each_port_to_its_own(make_lab, backend, protocol):
    kind, _, variant = backend.partition("-")
    lab = make_lab(variant or "nft")
    c0, c1 = lab.containers
    block = PortMapping(7000, (c0.ip, 80), protocol, count=100, owner="game")
    single = PortMapping(7100, (c1.ip, 180), protocol)
    at = PortMapping(9000, (c1.ip, 8000), protocol, lab.second_address, 20)
    for number in (80, 130, 179):
        lab.serve(c0, protocol, number)
    for number in (180, 8000, 8019):
        lab.serve(c1, protocol, number)
    with PortMapper(kind, bridge=lab.bridge, network=lab.network) as mapper:
        mapper.map_many([block, single, at])
        assert set(mapper.backend.mappings()) == {block, single, at}
        assert {m.owner for m in mapper.backend.mappings()} == {"game", None}
        assert not mapper.reconcile()
        for port in (7000, 7050, 7099):
            assert lab.ask(lab.outside, protocol, (lab.address, port))[0] == "c0"
            assert lab.ask(lab.host, protocol, ("127.0.0.1", port))[0] == "c0"
        assert lab.ask(lab.outside, protocol, (lab.address, 7100))[0] == "c1"
        assert lab.ask(lab.outside, protocol, (lab.second_address, 9019))[0] == "c1"
        assert lab.reaches(lab.outside, protocol, (lab.address, 9000)) is None
        with pytest.raises(InUseError):
            mapper.backend.apply([PortMapping(7000, (c1.ip, 1), protocol)])
        with pytest.raises(NetallocError):
            mapper.backend.apply((), [block.replace(count=99)])
        mapper.unmap(7000, protocol)
        assert set(mapper.backend.mappings()) == {single, at}
        assert lab.reaches(lab.outside, protocol, (lab.address, 7050)) is None


@pytest.mark.root
@pytest.mark.parametrize("to", [80, 7000])
def test_a_divided_block_and_single_ports_are_told_apart(nft_lab, to):
    """They lead to the same places, and are not the same mappings."""
    block = PortMapping(7000, ("10.200.0.2", to), count=3)
    singles = [PortMapping(7000 + i, ("10.200.0.2", to + i)) for i in range(3)]
    with PortMapper("nftables", bridge=nft_lab.bridge, network=nft_lab.network) as mapper:
        for wanted, there in (([block], singles), (singles, [block])):
            mapper.reconcile(there)
            assert set(mapper.backend.mappings()) == set(there)
            for some in (wanted, wanted[:1]):
                with pytest.raises(NetallocError):
                    mapper.backend.apply((), some)
            found = mapper.reconcile(wanted)
            assert set(found.added) == set(wanted)
            assert set(mapper.backend.mappings()) == set(wanted)
            assert not mapper.reconcile(wanted)
        mapper.reconcile([block])
        nft_lab.run("nft", "delete", "element", "inet", "netalloc", "dnat_any", "{ tcp . 7001 }")
        assert mapper.backend.mappings() == []  # the rest is no mapping of ours
        assert mapper.reconcile().added == (block,)
        assert mapper.backend.mappings() == [block]


@pytest.mark.root
def test_a_missing_bridge_changes_no_rules(nft_lab):
    """Reconciliation says so before it has touched anything."""
    for backend in ("iptables", "nftables"):
        with PortMapper(backend, bridge=nft_lab.bridge, network=nft_lab.network) as mapper:
            mapper.map(8080, ("10.200.0.2", 80))
            nft_lab.run("ip", "link", "set", nft_lab.bridge, "name", "away")
            nft_lab.run("nft", "flush", "ruleset")
            with pytest.raises(InterfaceError, match="br0"):
                mapper.reconcile()
            left = nft_lab.run("nft", "list", "ruleset")
            assert "netalloc" not in left
            nft_lab.run("ip", "link", "set", "away", "name", nft_lab.bridge)


def test_a_change_of_iptables_looks_at_its_batch_alone():
    from netalloc.portmap.iptables.state import ChainState

    class Counting(dict):
        copies = 0

        def __iter__(self):
            type(self).copies += 1
            return super().__iter__()

        keys = items = values = copy = None

    present = Counting({m.key: m for m in [PortMapping(p, ("10.0.0.1", 1)) for p in range(1, 9)]})
    state = ChainState(present, Counting({"n": 1, "n/T00": 1, "n/t00": 8}))
    change = state.change(
        [PortMapping(100, ("10.0.0.1", 1))], [PortMapping(1, ("10.0.0.1", 1))], "n"
    )
    assert len("".join(change.lines()).splitlines()) == 4
    assert len(state.present) == 8 and state.sizes["n/t00"] == 8  # nothing is different yet
    change.done()
    assert (IPv4Address("10.0.0.1"), 1) == state.present[None, "tcp", 100].dest
    assert state.sizes["n/t00"] == 7 and state.sizes["n/t01"] == 1
    assert Counting.copies == 0

"""The nftables backend's speed: each promise as a ratio to bare netlink or to nft itself."""

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from time import perf_counter

import pytest

from gate import Promise, Sides, Timed, measure, once

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from connects import connecting, listening
from lab import Lab, require_kernel
from netalloc.host.netlink import NETLINK_NETFILTER
from netalloc.host.netlink_messages import ACK, CREATE, EXCLUSIVE, message
from netalloc.model import PortMapping
from netalloc.portmap.mapper import PortMapper
from netalloc.portmap.nftables import elements, maps, single
from netalloc.portmap.nftables.backend import Nftables, batch

pytestmark = pytest.mark.root

FULL = 16_382
BATCH = [PortMapping(49153 + i, (f"10.200.{i >> 7}.{2 + i % 128}", 80)) for i in range(FULL)]
SINGLES = [PortMapping(100 + i, ("10.200.0.2", 80)) for i in range(50)]


@pytest.fixture
def lab() -> Iterator[Lab]:
    require_kernel()
    with Lab() as lab:
        yield lab


def mapper(lab: Lab, name: str = "netalloc") -> PortMapper:
    return PortMapper("nftables", bridge=lab.bridge, network=lab.network, name=name)


def check(name: str, limit: float, sides: Sides, turns: int) -> None:
    promise = Promise(name, limit, lambda *_: sides, turns=turns)
    measured = measure(promise, sys, None)
    print(f"{name:44} {measured.ratio:6.3f}  of {limit:g}")
    assert measured.ratio <= limit, (
        f"{name}: {measured.ours * 1e6:.1f} us is {measured.ratio:.3f} x "
        f"{measured.base * 1e6:.1f} us; the promise is {limit:g} x"
    )


def then(turn: Timed, afterwards: Callable[[], object]) -> Timed:
    """A turn, and what has to be undone behind it at nobody's cost."""

    def work() -> float:
        seconds = turn()
        afterwards()
        return seconds

    return work


def one_by_one(mapper: PortMapper) -> Timed:
    """map() of one port after the other, as a user writes it."""

    def turn() -> float:
        start = perf_counter()
        for one in SINGLES:
            mapper.map(one.host_port, ("10.200.0.2", 80))
        return (perf_counter() - start) / len(SINGLES)

    return then(turn, lambda: mapper.unmap_many(SINGLES))


def bare(sock: socket.socket, mapper: PortMapper) -> Timed:
    """The least it takes: a finished batch of one element sent, the acknowledgement read."""
    begin, end = (message(kind, 0, 1, b"\0\0\0\x0a") for kind in (0x10, 0x11))
    batches = []
    for one in SINGLES:
        (element,) = elements.encode_plain([elements.entry(one)], maps.DNAT_ANY)
        body = elements.body("netalloc", "dnat_any", [element])
        flags = CREATE | EXCLUSIVE | ACK
        batches.append(begin + message(batch.NEW_ELEMENT, flags, 1, body) + end)

    def turn() -> float:
        start = perf_counter()
        for one in batches:
            sock.send(one)
            sock.recv(4096)
        return (perf_counter() - start) / len(batches)

    return then(turn, lambda: mapper.backend.apply((), SINGLES))


def test_one_mapping_costs_a_few_round_trips_however_many_there_are(lab: Lab) -> None:
    with (
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as sock,
        mapper(lab) as few,
        mapper(lab, "full") as full,
    ):
        sock.bind((0, 0))
        full.map_many(BATCH)
        check("map() with none present", 4, (one_by_one(few), bare(sock, few)), 100)
        check("map() beside a bare round trip", 2.2, (one_by_one(few), bare(sock, few)), 100)
        check(f"map() with {FULL} present", 4, (one_by_one(full), bare(sock, few)), 100)
        check(f"map() with {FULL} to none", 1.3, (one_by_one(full), one_by_one(few)), 100)


def test_one_removal_costs_a_few_round_trips(lab: Lab) -> None:
    """Beside the bare question what is there, and the bare transaction that removes it."""
    asking, removing = single.asking("netalloc"), single.removing("netalloc")
    what = [single.entry(mapping) for mapping in SINGLES]
    messages = [make(1, one) for one in what for make in (asking, removing)]
    with (
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as sock,
        mapper(lab) as ours,
    ):
        sock.bind((0, 0))
        apply = ours.backend.apply

        def work() -> None:
            for mapping in SINGLES:
                apply((), (mapping,))

        def bare() -> None:
            for one in messages:
                sock.send(one)
                sock.recv(4096)

        def turn(remove: Callable[[], object]) -> Timed:
            timed = once(remove, len(SINGLES))

            def turn() -> float:
                apply(SINGLES)
                return timed()

            return turn

        check("one removal", 3, (turn(work), turn(bare)), 100)


def test_a_full_range_in_one_batch(lab: Lab) -> None:
    """map_many beside nft -f with the same elements, written in its shortest way."""
    text = ", ".join(f"tcp . {m.host_port} : {m.dest[0]} . {m.dest[1]}" for m in BATCH)
    script = f"add element inet netalloc dnat_any {{ {text} }}\n".encode()
    with mapper(lab) as ours:

        def empty() -> None:
            ours.reconcile([])

        load = once(lambda: subprocess.run(["nft", "-f", "-"], input=script, check=True))
        sides = then(once(lambda: ours.map_many(BATCH)), empty), then(load, empty)
        check(f"map_many of {FULL}", 0.6, sides, 5)


def test_nothing_to_do(lab: Lab) -> None:
    """reconcile beside the bare listing of the map, split into elements."""
    with mapper(lab) as ours:
        ours.map_many(BATCH)
        assert isinstance(ours.backend, Nftables)
        table = ours.backend._table
        sides = once(ours.reconcile), once(lambda: table.list_map(maps.DNAT_ANY))
        check(f"reconcile of {FULL} with nothing to do", 2, sides, 20)


def test_a_connection_through_the_last_mapping(lab: Lab) -> None:
    """A new connection through the last of a full range, and through an only mapping."""
    with listening(lab) as server, closing(mapper(lab)) as ours:
        last = PortMapping(BATCH[-1].host_port, (lab.containers[0].ip, 80))
        ours.setup()

        def turn(mappings: list[PortMapping]) -> Timed:
            def work() -> float:
                ours.reconcile(mappings)
                return connecting(lab, server, last.host_port)

            return work

        check(f"connect through {FULL}", 1.1, (turn([*BATCH[:-1], last]), turn([last])), 15)
        ours.cleanup()


def test_ipv6_costs_about_what_ipv4_does() -> None:
    require_kernel()
    with (
        Lab(ipv6=True) as lab,
        PortMapper("nftables", bridge=lab.bridge, network=lab.networks) as both,
        PortMapper("nftables", bridge=lab.bridge, network=lab.network, name="four") as four,
    ):
        six, usual = mapping_to(both, "fd00:c8::2"), mapping_to(both, "10.200.0.2")
        check("map() of IPv6 to one of IPv4", 1.3, (six, usual), 200)
        alone = mapping_to(four, "10.200.0.2")
        check("map() of IPv4 beside IPv6, to one alone", 1.1, (usual, alone), 200)
        both.map_many(BATCH)
        both.map_many([one.replace(dest=(f"fd00:c8::{one.host_port:x}", 80)) for one in BATCH])
        check(f"map() of IPv6 with {2 * FULL} to IPv4 alone", 1.3 * 1.3, (six, alone), 200)


def mapping_to(mapper: PortMapper, ip: str) -> Timed:
    """map() and unmap() of one port after the other."""

    def turn() -> float:
        start = perf_counter()
        for one in SINGLES:
            mapper.map(one.host_port, (ip, 80))
        seconds = (perf_counter() - start) / len(SINGLES)
        for one in SINGLES:
            mapper.unmap(one.host_port)
        return seconds

    return turn

"""What host ports cost where many are held, and many of the host's addresses have some."""

import gc
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from time import perf_counter

import pytest

from netalloc import InUseError, NetworkInterface, NetworkManager, PortAllocator, PortRequest
from netalloc.host.links import Links
from netalloc.host.sockets import bound_ports
from netalloc.manager.host_checks import host_probe

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from lab import Private
from promised import check

EVERY_PORT = range(1024, 65536)
LAST = EVERY_PORT[-1]
HELD = 50_000
ADDRESSES = [IPv4Address(0xC0A80001 + i) for i in range(1000)]
ONE, NEW = ADDRESSES[0], IPv4Address("192.168.200.1")
ADDRESSES6 = [IPv6Address(0x20010DB8 << 96 | i + 1) for i in range(1000)]
SHARED = 500  # the port that is held on each of the addresses
LIMIT = 1.5
Step = Callable[[], object]
Timed = tuple[Step, Step]  # the call itself, and what takes it back


def seconds(timed: Timed) -> float:
    call, undo = timed
    begin = perf_counter()
    call()
    spent = perf_counter() - begin
    undo()
    return spent


def ratio(ours: Timed, base: Timed, rounds: int) -> float:
    """Ours over base: the fastest quarter of interleaved calls, the collector paused."""
    gc.collect()
    gc.disable()
    try:
        pairs = [(seconds(ours), seconds(base)) for _ in range(rounds)]
    finally:
        gc.enable()
    quarter = max(1, rounds // 4)
    fast = [sum(sorted(side)[:quarter]) for side in zip(*pairs, strict=True)]
    return fast[0] / fast[1]


def refused(call: Step) -> Step:
    def step() -> None:
        with pytest.raises(InUseError):
            call()

    return step


def nothing() -> None:
    pass


# ---- the allocator alone


def allocator_at(addresses: list[IPv4Address], held: int) -> PortAllocator:
    ports = PortAllocator(EVERY_PORT)
    for ip in addresses:
        ports.reserve(SHARED, "tcp", ip)
    for port in EVERY_PORT[:held]:  # in turn, so that a search in two bitmaps is put to the test
        ports.reserve(port, "tcp", ONE if port % 2 else None)
    ports.acquire_block(1)
    return ports


def on_allocator(ports: PortAllocator) -> Iterator[tuple[str, Timed]]:
    got: list[tuple[int, IPv4Address | None]] = []

    def take(call: Callable[[], "int | range"], ip: IPv4Address | None) -> Timed:
        def step() -> None:
            found = call()
            got.extend((port, ip) for port in ([found] if isinstance(found, int) else found))

        return step, give_back

    def give_back() -> None:
        while got:
            port, ip = got.pop()
            ports.release(port, "tcp", ip)

    for what, ip in (("every address", None), ("one", ONE), ("a new one", NEW)):
        yield f"acquire on {what}", take(lambda ip=ip: ports.acquire("tcp", ip), ip)
        yield f"10 adjacent on {what}", take(lambda ip=ip: ports.acquire_block(10, "tcp", ip), ip)
        hold = lambda ip=ip: ports.reserve(700, "tcp", ip)  # noqa: E731
        let_go = lambda ip=ip: ports.release(700, "tcp", ip)  # noqa: E731
        yield f"reserve on {what}", (hold, let_go)
        ports.reserve(700, "tcp", ip)
        yield f"release on {what}", (let_go, hold)
        ports.release(700, "tcp", ip)
        hold = lambda ip=ip: ports.reserve(LAST, "tcp", ip)  # noqa: E731
        hold()
        let_go = lambda ip=ip: ports.release(LAST, "tcp", ip)  # noqa: E731
        yield f"release one of the range on {what}", (let_go, hold)
        let_go()
    yield "refuse on every address", (refused(lambda: ports.reserve(SHARED)), nothing)
    yield "refuse on one", (refused(lambda: ports.reserve(SHARED, "tcp", ONE)), nothing)


def test_a_port_costs_the_same_whatever_is_held() -> None:
    many = on_allocator(allocator_at(ADDRESSES, HELD))
    for (what, ours), (_, base) in zip(many, on_allocator(allocator_at([ONE], 0)), strict=True):
        check(
            f"{what} : 1,000 addresses and {HELD:,} ports to one, none",
            lambda ours=ours, base=base: ratio(ours, base, 2000),
            LIMIT,
        )


PLACES = [None, IPv4Address(0), IPv6Address(0), ONE, NEW, ADDRESSES6[0], IPv6Address("fd00::1")]


def at_both_families(addresses: int, held: int) -> PortAllocator:
    """Every other port is held on one address of IPv4, the rest on one of IPv6."""
    ports = PortAllocator(EVERY_PORT)
    for ip in (*ADDRESSES[:addresses], *ADDRESSES6[:addresses]):
        ports.reserve(SHARED, "tcp", ip)
    for port in EVERY_PORT[:held]:
        ports.reserve(port, "tcp", ONE if port % 2 else ADDRESSES6[0])
    ports.acquire_block(1)
    return ports


def on_place(
    ports: PortAllocator, place: IPv4Address | IPv6Address | None
) -> Iterator[tuple[str, Timed]]:
    got: list[int] = []
    hold = lambda: ports.reserve(LAST, "tcp", place)  # noqa: E731
    let_go = lambda: ports.release(LAST, "tcp", place)  # noqa: E731
    pick = lambda: got.append(ports.acquire("tcp", place))  # noqa: E731
    yield f"acquire on {place}", (pick, lambda: ports.release(got.pop(), "tcp", place))
    yield f"reserve on {place}", (hold, let_go)
    hold()
    yield f"release on {place}", (let_go, hold)
    let_go()


def test_a_port_of_either_family_costs_the_same_whatever_is_held() -> None:
    many, few = at_both_families(1000, HELD), at_both_families(1, 1)
    for place in PLACES:
        for (what, ours), (_, base) in zip(
            on_place(many, place), on_place(few, place), strict=True
        ):
            check(
                f"{what} : 1,000 addresses and {HELD:,} ports of both families to one of each",
                lambda ours=ours, base=base: ratio(ours, base, 1000),
                LIMIT,
            )


# ---- a manager's


def on_manager(manager: NetworkManager, held: int) -> Iterator[tuple[str, Timed]]:
    web: NetworkInterface = manager.allocate("web")
    got: list[tuple[int, IPv4Address | None]] = []

    def take(call: Callable[[], int], ip: IPv4Address | None) -> Timed:
        return (lambda: got.append((call(), ip))), give_back

    def give_back() -> None:
        port, ip = got.pop()
        web.release_port(port, host_ip=ip)

    for what, ip in (("every address", None), ("one", ONE), ("a new one", NEW)):
        yield f"allocate_port on {what}", take(lambda ip=ip: web.allocate_port(80, host_ip=ip), ip)
        yield (
            f"10 adjacent on {what}",
            take(lambda ip=ip: web.allocate_ports(10, host_ip=ip)[0], ip),
        )
        number = PortRequest(80, host_port=700, host_ip=ip)
        publish = lambda number=number: web.publish([number])  # noqa: E731
        let_go = lambda ip=ip: web.release_port(700, host_ip=ip)  # noqa: E731
        yield f"publish by number on {what}", (publish, let_go)
        publish()
        yield f"release_port on {what}", (let_go, publish)
        let_go()
    wanted = PortRequest(80, host_port=SHARED)
    yield "refuse a port held on addresses", (refused(lambda: web.publish([wanted])), nothing)
    first = PortRequest(80, host_port=EVERY_PORT[held // 2])
    if not held:
        web.publish([first])
    yield "refuse a port held on every address", (refused(lambda: web.publish([first])), nothing)


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_publication_costs_the_same_whatever_is_held(tmp_path: Path, kind: str) -> None:
    with ExitStack() as stack:
        sides = []
        for addresses, held in ((ADDRESSES, HELD), ([ONE], 0)):
            store = None if kind == "memory" else tmp_path / f"{held}.db"
            manager = stack.enter_context(
                NetworkManager(
                    f"br{held}",
                    network="10.0.0.1/8",
                    backend="null",
                    store=store,
                    ports=EVERY_PORT,
                )
            )
            shared = [PortRequest(80, host_port=SHARED, host_ip=ip) for ip in addresses]
            manager.allocate("shared", ports=shared)
            if held:
                manager.allocate_many(held, (80,), owner="crowd")
            sides.append(on_manager(manager, held))
        for (what, ours), (_, base) in zip(*sides, strict=True):
            check(
                f"{what}, {kind} : 1,000 addresses and {HELD:,} ports to one, none",
                lambda ours=ours, base=base: ratio(ours, base, 100),
                LIMIT,
            )


# ---- beside other programs


def test_a_pick_among_foreign_ports_costs_one_look_at_them() -> None:
    if os.geteuid():
        assert os.environ.get("CI") != "true", "in CI nothing is skipped: root is needed"
        pytest.skip("needs root")
    ports = range(40_000, 56_384)
    with ExitStack() as stack:
        stack.enter_context(Private())
        with Links() as links:
            links.set_up("lo")
        for port in ports[:-1]:
            one = stack.enter_context(socket.socket())
            one.bind(("", port))
            one.listen(1)
        allocator = PortAllocator(ports, probe=host_probe(ports))

        def pick() -> None:
            assert allocator.acquire() == ports[-1]

        def give_back() -> None:
            allocator.release(ports[-1])

        def look() -> None:
            assert len(bound_ports()) == len(ports) - 1

        check(
            "a pick where 16,383 ports are foreign : one look at all sockets",
            lambda: ratio((pick, give_back), (look, nothing), 7),
            LIMIT,
        )

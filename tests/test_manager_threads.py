"""Many threads at everything that threads may share, at once and without turns.

Where there is no GIL (`make test-freethreaded`) each of them is a core's own.
"""

import pickle
import sys
import sysconfig
import threading
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from netalloc import (
    Bitmap,
    ExhaustedError,
    InUseError,
    IPAllocator,
    NetworkManager,
    NotAllocatedError,
    PortAllocator,
    Subnet,
)
from test_threads import together

REFUSALS = (ExhaustedError, InUseError, NotAllocatedError)


class Holders:
    """Who holds what, told of each take and each giving back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: set[Any] = set()

    def take(self, what: Any) -> None:
        with self._lock:
            assert what not in self._held, f"{what} has two holders"
            self._held.add(what)

    def leave(self, what: Any) -> None:
        with self._lock:
            self._held.remove(what)


@pytest.mark.parametrize("cooldown", [0.0, 0.001])
def test_every_method_of_an_allocator(cooldown: float) -> None:
    allocator = IPAllocator("10.0.0.9/20", exclude="10.0.3.0/24", cooldown=cooldown)
    holders = Holders()

    def churn(k: int) -> None:
        mine: list[IPv4Address] = []
        for step in range(600):
            try:
                take_one(step, mine)
            except REFUSALS:
                pass
            look_at(allocator, step)
            while len(mine) > 60:
                give = mine[:30] if step % 2 else mine[:1]
                del mine[: len(give)]
                for ip in give:
                    holders.leave(ip)
                if len(give) > 1:
                    allocator.release_many(give)
                else:
                    allocator.release(give[0])
        for ip in mine:
            holders.leave(ip)
            assert allocator.discard(ip)

    def take_one(step: int, mine: list[IPv4Address]) -> None:
        kind = step % 5
        found: list[Any]
        if kind == 0:
            found = allocator.acquire_many(5)
        elif kind == 1:
            first = allocator.acquire_block(3)
            found = [first + i for i in range(3)]
        elif kind == 2:
            ip = IPv4Address("10.0.8.1") + step * 7 % 1000
            allocator.reserve(ip)
            found = [ip]
        elif kind == 3:
            found = [IPv4Address(allocator.acquire_int())]
        else:
            found = [allocator.acquire()]
        for ip in found:
            holders.take(ip)
        mine += found

    together(churn)
    assert len(allocator) == 0
    allocator._check()


def look_at(allocator: IPAllocator, step: int) -> None:
    """What may be asked of it while others change it."""
    looks: tuple[Callable[[], object], ...] = (
        lambda: len(allocator),
        lambda: allocator.available,
        lambda: allocator.nbytes,
        lambda: repr(allocator),
        lambda: "10.0.8.1" in allocator,
        lambda: list(zip(range(5), allocator, strict=False)),
        lambda: list(zip(range(5), allocator.runs(), strict=False)),
        lambda: pickle.loads(pickle.dumps(allocator))._check(),
        allocator._check,
    )
    looks[step % len(looks)]()


def test_every_method_of_a_bitmap() -> None:
    bitmap, holders = Bitmap(3 * 4096 + 7), Holders()

    def churn(k: int) -> None:
        mine: list[int] = []
        for step in range(800):
            try:
                found = [bitmap.acquire()]
                if step % 4 == 0:
                    found += [o for run in bitmap.acquire_ranges(40) for o in range(*run)]
            except ExhaustedError:
                found = []
            for ordinal in found:
                holders.take(ordinal)
            mine += found
            look = (len, repr, bytes_of, first_of, Bitmap._check)[step % 5]
            look(bitmap)
            if step % 9 == 0:
                bitmap.cursor = step
            while len(mine) > 300:
                holders.leave(mine[0])
                bitmap.release(mine.pop(0))
        for ordinal in mine:
            holders.leave(ordinal)
        bitmap.release_many(mine)

    together(churn)
    assert len(bitmap) == 0
    bitmap._check()


def bytes_of(bitmap: Bitmap) -> int:
    return len(bitmap.to_bytes()) + bitmap.nbytes + bitmap.available


def first_of(bitmap: Bitmap) -> object:
    return next(iter(bitmap), None), bitmap.next_free(0), bitmap.next_set(0), next(bitmap.runs(), 0)


def test_one_subnet_is_read_by_all() -> None:
    subnet = Subnet("10.0.0.1/16", exclude=["10.0.7.0/24", "10.0.9.9"])

    def read(k: int) -> None:
        for i in range(500):
            assert subnet.ordinal(subnet.address(i)) == i
            assert subnet.excluded() and subnet.exclude and hash(subnet) and str(subnet)
            assert Subnet(str(subnet), exclude=subnet.exclude) == subnet
            assert len(IPAllocator(subnet)) == 0

    together(read)


def test_a_port_has_one_holder() -> None:
    ports, holders = PortAllocator(range(8000, 8400)), Holders()

    def churn(k: int) -> None:
        for step in range(200):
            protocol = ("tcp", "udp")[step % 2]
            mine = ports.acquire_many(3, protocol) + list(ports.acquire_block(4, protocol))
            for port in mine:
                holders.take((protocol, port))
            assert ports.held(mine[0], protocol)
            for port in mine:
                holders.leave((protocol, port))
                ports.release(port, protocol)

    together(churn)
    assert ports.acquire_many(400)


@pytest.mark.parametrize("kind", ["memory", "file"])
@pytest.mark.parametrize("managers", [1, 2])
def test_every_method_of_a_manager(tmp_path: Path, kind: str, managers: int) -> None:
    """Two managers of one file are two networks' and share the ports of the host."""
    store = None if kind == "memory" else tmp_path / "store.db"
    made = [
        NetworkManager(
            f"br{i}",
            network=f"10.{i}.0.1/24",
            backend="null",
            store=store,
            ports=range(9000, 9200),
            sticky=60,
        )
        for i in range(managers)
    ]
    holders = Holders()

    def churn(k: int) -> None:
        manager = made[k % managers]
        owner = f"owner{k}"
        for step in range(25):
            few = manager.allocate_many(3, owner=owner)
            one = manager.allocate(owner, key=f"{k}/{step}", ports=(80,), labels={"k": str(k)})
            port = one.allocate_port(443)
            # Ports are the host's, in a file at least: two managers in memory are two hosts here.
            place = "host" if kind == "file" else manager.name
            names = [(manager.name, each.ip) for each in (*few, one)]
            names += [(place, mapping.host_port) for mapping in one.ports()]
            for name in names:
                holders.take(name)
            assert manager.find(owner) and manager.find(label=("k", str(k)))
            assert len(one.ports()) == 2
            for name in names:
                holders.leave(name)
            one.release_port(port)
            one.release()
            if step % 2:
                manager.release(owner)
            else:
                for each in few:
                    each.release()
            if step % 10 == k:
                assert manager.check() == []
                assert manager.history(one.ip)

    together(churn, threads=6)
    for manager in made:
        assert not manager.interfaces() and manager.check() == []
    for manager in made:
        manager.close()


def test_no_import_has_switched_the_gil_on() -> None:
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        assert not sys._is_gil_enabled()

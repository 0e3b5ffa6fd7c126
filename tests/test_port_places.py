"""Ports of both families against a plain list of who holds what, in memory and in a file."""

import random
from contextlib import suppress
from ipaddress import ip_address

import pytest

from netalloc.errors import ExhaustedError, InUseError, InvalidValueError, NotAllocatedError
from netalloc.ipam.publications import _InTransaction
from netalloc.port_bitmaps import MemoryBitmaps, bitmap_size
from netalloc.ports import PortAllocator
from netalloc.store.sqlite.store import SqliteStore

ANY4, ANY6 = "0.0.0.0", "::"
PLACES = [None, ANY4, ANY6, "192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2", "::1"]
RANGES = [range(10, 18), range(30, 10, -4), range(10, 31, 3)]


def conflict(one, two):
    """Whether what is held on one of them keeps the other from it."""
    if one is None or two is None or one == two:
        return True
    same = ip_address(one).version == ip_address(two).version
    return same and (one in (ANY4, ANY6) or two in (ANY4, ANY6))


class Oracle:
    def __init__(self, ports):
        self.ports, self.held, self.at = list(ports), set(), 0

    def free(self, port, place):
        return not any(number == port and conflict(place, at) for number, at in self.held)

    def next(self, place, n=1):
        size = len(self.ports)
        for i in (*range(self.at, size), *range(self.at)):
            window = self.ports[i : i + n]
            if len(window) == n and all(self.free(port, place) for port in window):
                return i
        return None


def steps(chance, real, oracle, places, count):
    for _ in range(count):
        place, n = chance.choice(places), chance.choice((1, 1, 2, 3))
        port = chance.choice([*oracle.ports, 9, 65535])
        what = chance.choice(("acquire", "reserve", "release", "release"))
        if what == "acquire":
            start = oracle.next(place, n)
            if start is None:
                with pytest.raises(ExhaustedError):
                    real.acquire_block(n, "tcp", place)
                continue
            wanted = oracle.ports[start : start + n]
            got = [real.acquire("tcp", place)] if n == 1 else real.acquire_block(n, "tcp", place)
            assert list(got) == wanted
            oracle.held |= {(one, place) for one in wanted}
            oracle.at = (start + n) % len(oracle.ports)
        elif what == "reserve":
            assert real.held(port, "tcp", place) is not oracle.free(port, place)
            if oracle.free(port, place):
                real.reserve(port, "tcp", place)
                oracle.held.add((port, place))
            else:
                with pytest.raises(InUseError, match=f"{port}/tcp is held on "):
                    real.reserve(port, "tcp", place)
        else:
            if oracle.held and chance.random() < 0.7:
                port, place = chance.choice(sorted(oracle.held, key=str))
            if (port, place) not in oracle.held:
                with pytest.raises(NotAllocatedError):
                    real.release(port, "tcp", place)
                continue
            full = oracle.next(place) is None
            real.release(port, "tcp", place)
            oracle.held.remove((port, place))
            if full and port in oracle.ports:
                oracle.at = oracle.ports.index(port)
        for one in oracle.ports:
            for at in places:
                assert real.held(one, "tcp", at) is not oracle.free(one, at)


def give_all_back(real, oracle):
    for port, place in list(oracle.held):
        real.release(port, "tcp", place)
    assert not any(real.held(port) for port in oracle.ports)


@pytest.mark.parametrize("ports", RANGES, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_the_oracle(ports, seed):
    bitmaps = MemoryBitmaps()
    real, oracle = PortAllocator(ports, bitmaps=bitmaps), Oracle(ports)
    steps(random.Random(seed), real, oracle, PLACES, 250)
    give_all_back(real, oracle)
    assert set(bitmaps.names("")) <= {f"ports/tcp/{kind}" for kind in ("every", "used", "more")}


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_it_in_a_file(tmp_path, seed):
    """Also from change to change, and where one of three changes is taken back."""
    chance, oracle = random.Random(seed), Oracle(RANGES[0])
    bitmaps = _InTransaction()
    real = PortAllocator(RANGES[0], bitmaps=bitmaps)

    class TakenBackError(Exception):
        pass

    def change(tx):
        bitmaps.enter(tx)
        steps(chance, real, oracle, PLACES, 20)
        if back:
            raise TakenBackError
        tx.commit()

    with SqliteStore(tmp_path / "host.db") as store:
        for i in range(20):
            back = i % 3 == 2
            held, at = set(oracle.held), oracle.at
            with suppress(TakenBackError):
                store.run("steps", change)
            if back:
                oracle.held, oracle.at = held, at

        def end(tx):
            bitmaps.enter(tx)
            give_all_back(real, oracle)
            assert set(tx.names("ports/")) <= {
                f"ports/tcp/{kind}" for kind in ("every", "used", "more")
            }
            tx.commit()

        store.run("end", end)


def test_ipv4_alone_is_spared_what_ipv6_needs():
    bitmaps = MemoryBitmaps()
    steps(random.Random(1), PortAllocator(RANGES[0], bitmaps=bitmaps), Oracle(RANGES[0]),
          [None, ANY4, "192.0.2.1", "192.0.2.2"], 250)  # fmt: skip
    assert not any("6" in name for name in bitmaps.names(""))


def test_every_address_of_a_family_is_searched_for_in_a_few_steps():
    """However the ports that only the other family has lie between."""

    class Counted(MemoryBitmaps):
        asked = 0

        def bitmap(self, name, size):
            self.asked += 1
            return super().bitmap(name, size)

    bitmaps = Counted()
    ports = PortAllocator(range(1, 65536), bitmaps=bitmaps)
    for port in range(1, 15001):
        if port % 3:
            ports.reserve(port, "tcp", "192.0.2.1")
        if port % 5:
            ports.reserve(port, "tcp", "2001:db8::1")
    bitmaps.asked = 0
    assert ports.acquire("tcp", ANY4) == 3
    assert ports.acquire("tcp", ANY6) == 5
    assert ports.acquire("tcp", ANY4) == 6
    assert ports.acquire_block(3, "tcp", ANY4) == range(15000, 15003)
    assert ports.acquire("tcp", None) == 15003
    assert bitmaps.asked < 60


def test_the_words_say_on_what_a_port_is_held():
    ports = PortAllocator()
    ports.reserve(80, "tcp", ANY6)
    for place, words in (
        (ANY6, "held on every address of IPv6$"),
        ("2001:db8::1", "held on every address of IPv6$"),
        (None, "held on every address of IPv6, so every address cannot be had"),
    ):
        with pytest.raises(InUseError, match=words):
            ports.reserve(80, "tcp", place)
    ports.reserve(80, "tcp", "192.0.2.1")
    with pytest.raises(InUseError, match=r"held on 192\.0\.2\.1, so every address of IPv4 cann"):
        ports.reserve(80, "tcp", ANY4)
    with pytest.raises(NotAllocatedError, match="80/tcp is not held on every address of IPv4"):
        ports.release(80, "tcp", ANY4)
    with pytest.raises(ExhaustedError, match="on every address of IPv6 is left in 80-80"):
        PortAllocator(range(80, 81), bitmaps=ports._bitmaps).acquire("tcp", ANY6)


@pytest.mark.parametrize("place", ["fe80::1%eth0", "::ffff:192.0.2.1", "2001:db8::g", b"::"])
def test_an_address_that_is_none_is_refused(place):
    ports = PortAllocator()
    for call in (ports.reserve, ports.release, ports.held):
        with pytest.raises(InvalidValueError, match="host address"):
            call(80, "tcp", place)


def test_the_counters_are_as_large_as_their_digits():
    assert bitmap_size("ports/tcp/more6") == bitmap_size("ports/tcp/more") == 65536 * 32
    assert bitmap_size("ports/tcp/used6") == bitmap_size("ports/tcp/on/::") == 65536

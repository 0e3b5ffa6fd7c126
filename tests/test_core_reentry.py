"""Code that the interpreter runs in the middle of a call and that calls the same object again.

The collector finalises garbage whenever something is allocated, a clock, an iterator and an
`__index__` are the caller's own: each may come back to the allocator that is just at work. The
answer may be any right one, or a NetallocError; nothing may be given twice, be lost or crash.

A `Ledger` knows what is held. Every combination of a call, of what comes back in between, and
of the moment at which it does so is run once, and afterwards both must agree.
"""

import gc
import sys
import weakref
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from netalloc import Bitmap, ExhaustedError, IPAllocator, NetallocError


@pytest.fixture(autouse=True, scope="module")
def small_heap() -> Iterator[None]:
    """What exists already is no garbage: thousands of collections need not look at it."""
    gc.freeze()
    yield
    gc.unfreeze()


Core = Any  # a Bitmap or an IPAllocator
MOMENTS = 40  # allocations of one call at which the collector comes, at most


class Ledger:
    """Who holds what, as numbers; anything given while it is held is a double."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.held: set[int] = set()
        self.doubles: list[int] = []
        self.calls = 0  # how often something came back in between
        self.inside = False  # it is at that now

    def got(self, numbers: Any) -> None:
        for n in numbers:
            if int(n) in self.held:
                self.doubles.append(int(n))
            self.held.add(int(n))

    def gave(self, numbers: Any) -> None:
        self.held.difference_update(int(n) for n in numbers)

    def agree(self, what: str) -> None:
        self.core._check()
        assert self.doubles == [], f"{what}: given twice"
        assert {int(n) for n in self.core} == self.held, f"{what}: lost, or taken by no call"


# ---- the objects


class Clock:
    """A time that a test sets; `back` is called at each reading."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.back: Callable[[], object] = lambda: None

    def __call__(self) -> float:
        self.back()
        return self.now


def mixed_bitmap() -> Ledger:
    """A full block, a mixed one and empty ones; the cursor stands in the mixed one."""
    ledger = Ledger(Bitmap(3 * 4096))
    ledger.got(i for start, stop in ledger.core.acquire_ranges(5000) for i in range(start, stop))
    for i in range(4100, 4990, 3):
        ledger.core.release(i)
        ledger.gave([i])
    ledger.core.cursor = 4099
    return ledger


def full_bitmap() -> Ledger:
    ledger = Ledger(Bitmap(4096 + 70))
    ledger.got(
        i for start, stop in ledger.core.acquire_ranges(4096 + 70) for i in range(start, stop)
    )
    return ledger


def nearly_full_bitmap() -> Ledger:
    """Two are free, in two blocks that are otherwise full."""
    ledger = full_bitmap()
    for i in (4100, 7):
        ledger.core.release(i)
        ledger.gave([i])
    return ledger


def allocator(network: str, cooldown: float, taken: int, cool: int = 0, ready: int = 0) -> Ledger:
    """So many taken, then some of them cooling, the first `ready` of these for long enough."""
    clock = Clock()
    made = IPAllocator(network, exclude=[network[:-4] + "9"], cooldown=cooldown, clock=clock)
    ledger = Ledger(made)
    ledger.clock = clock  # type: ignore[attr-defined]
    given = made.acquire_many(taken)
    ledger.got(given)
    for k, ip in enumerate(given[3 : 3 + cool]):
        if k == ready:
            clock.now += 100.0
        made.release(ip)
        ledger.gave([ip])
    return ledger


STATES: dict[str, Callable[[], Ledger]] = {
    "bitmap, mixed": mixed_bitmap,
    "bitmap, full": full_bitmap,
    "bitmap, nearly full": nearly_full_bitmap,
    "v4": lambda: allocator("10.0.0.1/19", 0.0, 5000),
    "v4, nearly full": lambda: allocator("10.0.0.1/27", 0.0, 26),
    "v4, some cool": lambda: allocator("10.0.0.1/27", 60.0, 20, 6, 3),
    "v4, all taken or cooling": lambda: allocator("10.0.0.1/27", 60.0, 28, 6),
    "v4, all taken or cooled": lambda: allocator("10.0.0.1/27", 60.0, 28, 6, 3),
    "v6": lambda: allocator("fd00::1/64", 0.0, 300),
    "v6, some cool": lambda: allocator("fd00::1/123", 60.0, 29, 6, 3),
}


# ---- what comes back in between


def free_one(ledger: Ledger) -> int:
    """The lowest that is not held, or the first of all where everything is."""
    core = ledger.core
    if isinstance(core, Bitmap):
        return next((i for i in range(core.size) if i not in ledger.held), 0)
    lowest = int(core.address(0))
    return next(n for n in range(lowest + 10, lowest + 7000) if n not in ledger.held)


def some_held(ledger: Ledger, n: int) -> list[int]:
    """The lowest n; for what comes back in between the highest, which the call does not name."""
    numbers = sorted(ledger.held)
    if len(numbers) < 2 * n:
        raise ExhaustedError("too few are held to release any")
    return numbers[-n:] if ledger.inside else numbers[:n]


def numbers_of(core: Core, buffer: array) -> list[int]:  # type: ignore[type-arg]
    base = 0 if isinstance(core, Bitmap) else int(core.network.network_address)
    return [n if n > 2**20 or (base < 2**32 and n >= base) else base + n for n in buffer.tolist()]


def acquire(ledger: Ledger) -> None:
    ledger.got([ledger.core.acquire()])


def acquire_cooling(ledger: Ledger) -> None:
    ledger.got([ledger.core.acquire(allow_cooling=True)])


def acquire_int(ledger: Ledger) -> None:
    ledger.got([ledger.core.acquire_int()])


def acquire_int_cooling(ledger: Ledger) -> None:
    ledger.got([ledger.core.acquire_int(allow_cooling=True)])


def acquire_into(ledger: Ledger) -> None:
    target = array("Q", [0]) * 3
    ledger.core.acquire_into(target)
    ledger.got(numbers_of(ledger.core, target))


def acquire_ranges(ledger: Ledger) -> None:
    found = ledger.core.acquire_ranges(300)
    ledger.got(i for start, stop in found for i in range(start, stop))


def acquire_many(ledger: Ledger) -> None:
    ledger.got(ledger.core.acquire_many(2))


def acquire_block(ledger: Ledger) -> None:
    first = int(ledger.core.acquire_block(2))
    ledger.got([first, first + 1])


def reserve(ledger: Ledger) -> None:
    n = free_one(ledger)
    ledger.core.reserve(n)
    ledger.got([n])


def reserve_cooling(ledger: Ledger) -> None:
    n = free_one(ledger)
    ledger.core.reserve(n, allow_cooling=True)
    ledger.got([n])


@contextmanager
def giving(ledger: Ledger, numbers: list[int]) -> Iterator[None]:
    """Not held from here on, for what comes back may get them; held again where it is refused."""
    ledger.gave(numbers)
    try:
        yield
    except NetallocError:
        ledger.got(numbers)
        raise


def release(ledger: Ledger) -> None:
    (n,) = some_held(ledger, 1)
    with giving(ledger, [n]):
        ledger.core.release(n)


def release_many(ledger: Ledger) -> None:
    numbers = some_held(ledger, 3)
    with giving(ledger, numbers):
        ledger.core.release_many(numbers)


def release_buffer(ledger: Ledger) -> None:
    numbers = some_held(ledger, 3)
    base = 0 if numbers[0] < 2**64 else int(ledger.core.network.network_address)
    with giving(ledger, numbers):
        ledger.core.release_many(array("Q", [n - base for n in numbers]))


def look(ledger: Ledger) -> None:
    core = ledger.core
    assert len(core) <= core.size
    assert core.available <= core.size
    if isinstance(core, Bitmap):
        assert core.next_block(1, 0) == core.next_free(0) or ledger.inside
        assert (core.previous_set(core.size) is None) == (core.next_set(0) is None)
    assert len(list(core.runs())) <= len(ledger.held) or ledger.inside
    assert next(iter(core), None) is not None or not ledger.held
    repr(core)


def through_bytes(ledger: Ledger) -> None:
    """What was saved is a state that was, whatever happens in between."""
    again = type(ledger.core).from_bytes(ledger.core.to_bytes())
    again._check()


def nothing(ledger: Ledger) -> None:
    pass


BOTH = [
    acquire, acquire_into, acquire_block, reserve, release, release_many, release_buffer, look,
    through_bytes,
]  # fmt: skip
BITMAP = [*BOTH, acquire_ranges]
ALLOCATOR = [
    *BOTH, acquire_int, acquire_many, acquire_cooling, acquire_int_cooling, reserve_cooling,
]  # fmt: skip
STEPS = {
    state: (BITMAP if state.startswith("bitmap") else ALLOCATOR) for state in STATES
}  # every call of that kind of object, as the one that is at work and as the one that comes back


def attempt(step: Callable[[Ledger], None], ledger: Ledger) -> None:
    """A call that may be refused, by a named error alone."""
    with suppress(NetallocError):
        step(ledger)


def come_back_to(ledger: Ledger, back: Callable[[Ledger], None]) -> Callable[[], None]:
    """What a finaliser, a clock, an index or an iterator calls."""

    def come_back() -> None:
        ledger.calls += 1
        ledger.inside = True
        attempt(back, ledger)
        ledger.inside = False

    return come_back


# ---- by the collector


class Bomb:
    """Garbage in a cycle, whose finaliser comes back to the allocator at the nth collection."""

    armed = True

    def __init__(self, wait: int, back: Callable[[], object]) -> None:
        self.me = self
        self.wait = wait
        self.back = back

    def __del__(self) -> None:
        if Bomb.armed and self.wait:
            Bomb(self.wait - 1, self.back)
        elif Bomb.armed:
            Bomb.armed = False  # one comes back, once
            self.back()


@contextmanager
def eager_collector() -> Iterator[None]:
    """A collection at nearly every object that is made; what has not come back then never will."""
    gc.collect()
    before = gc.get_threshold()
    Bomb.armed = True
    gc.set_threshold(1)
    try:
        yield
    finally:
        Bomb.armed = False
        gc.set_threshold(*before)
        gc.collect()


def with_the_collector(state: str, step: Any, back: Any, wait: int) -> int:
    """One case; how many times something came back."""
    ledger = STATES[state]()
    with eager_collector():
        Bomb(wait, come_back_to(ledger, back))
        attempt(step, ledger)
    ledger.agree(f"{state}: {back.__name__} at collection {wait} of {step.__name__}")
    return ledger.calls


@pytest.mark.parametrize("state", STATES)
def test_a_finaliser_that_comes_back(state: str, record_property: Any) -> None:
    cases = met = 0
    for step in STEPS[state]:
        for back in STEPS[state]:
            for wait in range(MOMENTS):
                happened = with_the_collector(state, step, back, wait)
                cases += 1
                met += happened
                if not happened:  # the call was over before: no later moment exists
                    break
    record_property("cases", cases)
    assert cases >= len(STEPS[state]) ** 2
    if sys.version_info < (3, 12):  # later ones collect between bytecodes alone
        assert met > len(STEPS[state]), f"only {met} of {cases} finalisers ran within a call"


# ---- by the caller's own code


@pytest.mark.parametrize("state", [state for state in STATES if "cool" in state])
@pytest.mark.parametrize("forward", [0.0, 30.0, 1000.0])
def test_a_clock_that_comes_back(state: str, forward: float) -> None:
    """Also one that moves on meanwhile, so that others have cooled."""
    cases = met = 0
    for step in STEPS[state]:
        for back in STEPS[state]:
            for wait in range(4):
                ledger = STATES[state]()
                clock = ledger.clock  # type: ignore[attr-defined]
                come_back, readings = come_back_to(ledger, back), iter(range(1000))

                def read(
                    clock: Any = clock, wait: int = wait, back: Any = come_back, at: Any = readings
                ) -> None:
                    if next(at) == wait:
                        clock.now += forward
                        back()

                clock.back = read
                attempt(step, ledger)
                clock.back = lambda: None
                ledger.agree(f"{state}: {back.__name__} at reading {wait} of {step.__name__}")
                cases += 1
                met += ledger.calls
    assert met >= len(STEPS[state]), f"{met} of {cases}"


class Number:
    """An integer that comes back to the allocator when it is asked for its value."""

    def __init__(self, value: int, back: Callable[[], object]) -> None:
        self.value = value
        self.back = back

    def __index__(self) -> int:
        self.back()
        return self.value


@pytest.mark.parametrize("state", STATES)
def test_an_index_and_an_iterator_that_come_back(state: str) -> None:
    cases = 0
    for back in STEPS[state]:
        for method in (
            "reserve", "release", "discard", "acquire_block", "release_many", "drain", "next_block",
        ):  # fmt: skip
            ledger = STATES[state]()
            core = ledger.core
            come_back = come_back_to(ledger, back)
            held = some_held(ledger, 1)[0]
            with suppress(NetallocError):
                if method == "reserve":
                    n = free_one(ledger)
                    core.reserve(Number(n, come_back))
                    ledger.got([n])
                elif method in ("release", "discard"):
                    with giving(ledger, [held]):
                        getattr(core, method)(Number(held, come_back))
                elif method == "acquire_block":
                    first = int(core.acquire_block(Number(3, come_back)))
                    ledger.got(range(first, first + 3))
                elif method == "next_block":
                    if isinstance(core, Bitmap):
                        first = core.next_block(Number(3, come_back), Number(0, come_back))
                        assert first is None or first not in core
                elif method == "release_many":
                    with giving(ledger, [held]):
                        core.release_many([Number(held, come_back)])
                else:  # an iterator that ends what it yields

                    def items(come_back: Any = come_back, held: int = held) -> Iterator[int]:
                        come_back()
                        yield held
                        come_back()

                    with giving(ledger, [held]):
                        core.release_many(items())
            ledger.agree(f"{state}: {back.__name__} within {method}")
            cases += 1
    assert cases == 7 * len(STEPS[state])


def test_a_weak_reference_that_comes_back() -> None:
    """An item that dies while the others are read."""
    for state in STATES:
        for back in STEPS[state]:
            ledger = STATES[state]()
            (held,) = some_held(ledger, 1)
            one = [Number(held, lambda: None)]
            come_back = come_back_to(ledger, back)
            weak = weakref.ref(one[0], lambda _, come_back=come_back: come_back())
            with suppress(NetallocError), giving(ledger, [held]):
                ledger.core.release_many(one.pop() for _ in range(1))
            assert weak() is None
            assert ledger.calls == 1
            ledger.agree(f"{state}: {back.__name__} as an item dies")


def test_an_iteration_bears_every_change() -> None:
    """Each step looks anew: what it yields was taken at that moment, in ascending order."""
    for state in STATES:
        for back in STEPS[state]:
            ledger = STATES[state]()
            seen = []
            for count, n in enumerate(ledger.core):
                assert int(n) in ledger.held, f"{state}: {n} after {back.__name__}"
                seen.append(int(n))
                if count < 50:
                    attempt(back, ledger)
                elif count > 100:
                    break
            assert seen == sorted(set(seen))
            for start, stop in ledger.core.runs():
                assert int(start) <= int(stop)
                attempt(back, ledger)
                ledger.calls += 1
                if ledger.calls > 50:
                    break
            ledger.agree(f"{state}: {back.__name__} while iterating")


# ---- each defect by itself


def test_releasing_within_acquire_block_gives_no_second_block() -> None:
    """The nodes that were made for the block were used up by the finaliser: a NULL was read."""
    for wait in range(12):
        made = IPAllocator("10.0.0.1/8")
        given = made.acquire_many(4096 * 3)
        got: list[Any] = []

        def back(made: IPAllocator = made, given: Any = given, got: Any = got) -> None:
            got.append(made.acquire_block(5))
            made.release_many(given[4096:8192:7])

        with eager_collector():
            Bomb(wait, back)
            first = made.acquire_block(5)
        assert first not in got
        made._check()


def test_the_longest_cooling_is_given_once() -> None:
    for wait in range(12):
        made = IPAllocator("10.0.0.1/29", cooldown=60.0, clock=lambda: 0.0)
        for ip in made.acquire_many(5):
            made.release(ip)
        got: list[Any] = []

        def back(made: IPAllocator = made, got: Any = got) -> None:
            with suppress(ExhaustedError):
                got.append(made.acquire(allow_cooling=True))

        with eager_collector():
            Bomb(wait, back)
            got.append(made.acquire(allow_cooling=True))
        assert len(set(got)) == len(got)
        assert set(made) == set(got)
        made._check()


def test_ranges_are_those_that_are_taken() -> None:
    """Between finding ranges and taking them the finaliser took some of them."""
    for wait in range(12):
        bitmap = Bitmap(2**24)
        for i in range(0, 4000, 2):
            bitmap.reserve(i)
        got: list[int] = []

        def back(bitmap: Bitmap = bitmap, got: Any = got) -> None:
            got.append(bitmap.acquire())

        with eager_collector():
            Bomb(wait, back)
            ranges = bitmap.acquire_ranges(1000)
        given = [i for start, stop in ranges for i in range(start, stop)]
        assert len({*given, *got}) == 1000 + len(got)
        assert len(bitmap) == 2000 + 1000 + len(got)
        bitmap._check()


def test_addresses_are_ordinary_ones_whatever_collects() -> None:
    for network, kind in (("10.0.0.1/24", IPv4Address), ("fd00::1/120", IPv6Address)):
        made = IPAllocator(network)
        for wait in range(20):
            with eager_collector():
                Bomb(wait, made.acquire)
                assert type(made.acquire()) is kind
        made._check()

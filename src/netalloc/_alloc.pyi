"""Types and documentation of the core, which is C; src/_alloc.pyx is where it is made.

The docstrings here are the long ones, for an editor; those in the source are for `help()`,
one sentence and the errors. Each example runs as a test.
"""

from collections.abc import Callable, Iterable, Iterator
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from sqlite3 import Connection, Cursor
from typing import Any, Generic, SupportsFloat, SupportsIndex, TypeVar, final

from typing_extensions import Buffer, Self, disjoint_base

_Address = IPv4Address | IPv6Address
_Network = IPv4Network | IPv6Network
_R = TypeVar("_R")
_T = TypeVar("_T")
_AnyNetwork = str | IPv4Interface | IPv6Interface | IPv4Network | IPv6Network
_AnyAddress = str | SupportsIndex | IPv4Address | IPv6Address
_Block = str | _Address | _Network

def ip_to_int(ip: IPv4Address | str | bytes | bytearray, /) -> int:
    """The 32-bit value of an IPv4Address, of its text or of its 4 bytes in network order.

    Raises InvalidValueError. An IPv4Address costs 20 ns, text 60.

    >>> ip_to_int("128.0.0.0") == 2**31
    True
    """

def int_to_ip(n: SupportsIndex, /) -> IPv4Address:
    """The IPv4Address of a 32-bit value, at a third of what its constructor costs.

    Raises OutOfRangeError for a number that has not 32 bits, InvalidValueError for what is none.

    >>> int_to_ip(0xFFFFFFFF)
    IPv4Address('255.255.255.255')
    """

def network_range(network: _AnyNetwork, /) -> tuple[_Address, _Address]:
    """The first and the last address of a network, the host bits of which may be set.

    Raises InvalidValueError.

    >>> network_range("10.1.2.3/26")
    (IPv4Address('10.1.2.0'), IPv4Address('10.1.2.63'))
    """

def network_size(mask: SupportsIndex | _AnyNetwork, /) -> int:
    """How many addresses an IPv4 prefix length, a dotted mask or a network covers.

    Raises InvalidValueError, and OutOfRangeError for a length that is not in 0 to 32.

    >>> network_size(0), network_size("255.255.255.192"), network_size("10.0.0.0/8")
    (4294967296, 64, 16777216)
    """

@final
class Bitmap:
    """A set of ordinals 0 to size - 1 that hands out the next free one; size up to 2**64.

    A cursor walks the ordinals once round: `acquire` takes the first free one at or after it
    and moves it past, so that a released one comes back as late as possible. It reads like a
    set of what is taken: `in`, `len`, iteration in ascending order.

    An operation on one ordinal costs at most a step down and up for each level of 64: 2 levels
    for 2**16 ordinals, 3 for 2**24, 10 for 2**64. Memory follows the number of blocks of 4096
    that are neither empty nor full: 544 bytes for each, and for each 64 of them; ordinals that
    are reserved far from each other weigh some 30 bytes each.

    An integer is anything with `__index__` but a bool. Every method raises InvalidValueError for
    another kind of value and OutOfRangeError for an ordinal that is none; a call that raises has
    changed nothing. Threads may share one; after a fork, parent and child have one each. Code
    that the interpreter runs in between (the collector, an iterator) may call the same bitmap.

    >>> b = Bitmap(3)
    >>> b.acquire(), b.acquire()
    (0, 1)
    >>> b.release(0)
    >>> b.acquire(), b.acquire()
    (2, 0)
    >>> 1 in b, len(b), b.available
    (True, 3, 0)
    """

    cursor: int
    def __new__(cls, size: SupportsIndex) -> Self: ...
    def acquire(self) -> int:
        """Take the first free ordinal at or after the cursor, from 0 on after the last.

        Raises ExhaustedError when all are taken.
        """

    def reserve(self, i: SupportsIndex, /) -> None:
        """Take this ordinal and leave the cursor where it is.

        Raises InUseError when it is taken.
        """

    def release(self, i: SupportsIndex, /) -> None:
        """Free this ordinal; if all were taken, it is the next one given.

        Raises NotAllocatedError when it is free.
        """

    def discard(self, i: SupportsIndex, /) -> bool:
        """Free this ordinal if it is taken, as set.discard does; tell whether it was."""

    def acquire_into(self, buffer: Buffer, /) -> int:
        """Fill a writable buffer of 32- or 64-bit integers with ordinals; all or nothing.

        The same ordinals in the same order as from so many calls of `acquire`, at about 0.1 ns
        each where nothing is taken and 2 where half is. Returns how many items were filled.

        Raises ExhaustedError; OutOfRangeError where an item could not hold the highest ordinal
        (a signed one holds half as many); InvalidValueError for a buffer that is read-only, not
        contiguous, not aligned, or of other items.

        >>> from array import array
        >>> a = array("Q", bytes(24))
        >>> Bitmap(10).acquire_into(a), a.tolist()
        (3, [0, 1, 2])
        """

    def acquire_ranges(self, n: SupportsIndex, /) -> list[tuple[int, int]]:
        """Take the n ordinals that `acquire` would give, as a list of (start, stop).

        Costs a few steps a range, whatever its length. Raises ExhaustedError.

        >>> Bitmap(2**64).acquire_ranges(2**40)
        [(0, 1099511627776)]
        """

    def acquire_block(self, n: SupportsIndex, /) -> int:
        """Take n ordinals in a row, the first fit from the cursor on, and return the first.

        Looks at every word at worst: about 1 ms for 2**24 ordinals. Raises ExhaustedError, and
        OutOfRangeError for a block of 0.

        >>> b = Bitmap(100)
        >>> b.reserve(5)
        >>> b.acquire_block(8)
        6
        """

    def release_many(self, ordinals: Buffer | Iterable[SupportsIndex], /) -> None:
        """Free all of these or none: a buffer of 32- or 64-bit integers, or any iterable.

        About 1 ns each for a sorted buffer, 5 for a shuffled one. If all were taken, the first is
        the next one given. A buffer is read once, so one that changes meanwhile does no harm.

        Raises NotAllocatedError, also where one is named twice.

        >>> b = Bitmap(10)
        >>> b.acquire_ranges(4)
        [(0, 4)]
        >>> b.release_many([1, 2])
        >>> list(b)
        [0, 3]
        """

    def __contains__(self, i: object, /) -> bool: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[int]:
        """The taken ordinals, ascending; each step looks anew, so it bears changes."""

    def runs(self) -> Iterator[tuple[int, int]]:
        """The taken ordinals as ascending (start, stop), each as long as possible."""

    def next_free(self, start: SupportsIndex, /) -> int | None:
        """The first free ordinal at or after `start`, or None."""

    def next_set(self, start: SupportsIndex, /) -> int | None:
        """The first taken ordinal at or after `start`, or None."""

    def previous_set(self, start: SupportsIndex, /) -> int | None:
        """The last taken ordinal at or before `start`, or None."""

    def next_block(self, n: SupportsIndex, start: SupportsIndex, /) -> int | None:
        """Where the first n free ordinals in a row at or after `start` begin, or None.

        Looks at every word at worst, as acquire_block does, and takes nothing. Raises
        OutOfRangeError for a block of 0.

        >>> b = Bitmap(100)
        >>> b.reserve(5)
        >>> b.next_block(8, 0), b.next_block(2, 0), b.next_block(95, 0)
        (6, 0, None)
        """

    def counts(self, first: SupportsIndex, cell: SupportsIndex, n: SupportsIndex, /) -> bytes:
        """How many are taken in each of n cells of `cell` ordinals, from `first` on.

        As n unsigned 64-bit words of the machine's own order. What a cell has of numbers that are
        no ordinals is not counted, so the cells may begin before 0 (`first` is negative) and end
        after the last. A popcount for each word: about 1 ms for 2**24 ordinals, half of them
        taken, in cells of 256.

        Raises OutOfRangeError for a cell of 0 or of more than 2**63, and for more than 2**24 cells.

        >>> b = Bitmap(100)
        >>> b.acquire_ranges(10)
        [(0, 10)]
        >>> memoryview(b.counts(-2, 8, 3)).cast("Q").tolist()
        [6, 4, 0]
        """

    @property
    def size(self) -> int:
        """How many ordinals there are."""

    @property
    def available(self) -> int:
        """How many are free."""

    @property
    def nbytes(self) -> int:
        """Memory in bytes: this object and its nodes."""

    def __sizeof__(self) -> int: ...
    def to_bytes(self) -> bytes:
        """The whole state, cursor included: 36 bytes, and 0.51 KiB for each mixed block of 4096.

        Equal bitmaps with equal cursors give equal bytes. Linear in them: 44 us for 2 MiB.

        >>> b = Bitmap(2**24)
        >>> len(b.to_bytes())
        36
        """

    @classmethod
    def from_bytes(cls, data: Buffer, /) -> Self:
        """The bitmap that `to_bytes` wrote.

        Raises StoreError for bytes that are truncated, corrupt, foreign, of a newer version, or
        that contradict each other; InvalidValueError for what is not bytes.
        """

    def __reduce__(self) -> tuple[Callable[[bytes], Self], tuple[bytes]]: ...
    def _check(self) -> None: ...

@disjoint_base
class Subnet:
    """The addresses of a network that may be given, each with its ordinal; holds no state.

    `network` is written as the gateway would: in "10.0.0.1/8" the gateway is 10.0.0.1, which is
    never given; where the address part is the network's own there is none. Network and broadcast
    addresses are never given, but in a /31 both are (RFC 3021); IPv6 has no broadcast, and its
    lowest address is the routers' anycast (RFC 4291, 2.6.1) unless the prefix is a /127
    (RFC 6164) or /128. Of a prefix shorter than /64 the first 2**64 addresses are given; the
    gateway may be any. Text, interface and network objects are taken, and another Subnet, to
    which `exclude` is added.

    `exclude` names addresses and networks that are never given either: text or objects, several
    or one. A network costs what an address does. Those that are never given in any case may be
    named, and change nothing.

    Ordinal 0 is the lowest address that may be given but for `exclude`: excluding an address
    leaves every ordinal what it is. Network and broadcast addresses, and a gateway at either end,
    have no ordinal; a gateway in between has one, and counts as excluded.

    Immutable, hashable, and equal to another where network, gateway and exclusions are, however
    they were written; an IPAllocator is equal to itself alone. `str` is the network as the
    gateway would write it.

    Raises InvalidValueError for what is no network or no address; OutOfRangeError for a gateway
    that is the broadcast address, for exclusions that lie outside, and where no address is left
    to give.

    >>> s = Subnet("10.0.0.1/24", exclude=["10.0.0.128/25"])
    >>> s
    Subnet('10.0.0.1/24', exclude=['10.0.0.128/25'])
    >>> str(s), s.gateway, s.capacity, "10.0.0.2" in s, "10.0.0.200" in s
    ('10.0.0.1/24', IPv4Address('10.0.0.1'), 126, True, False)
    >>> s.ordinal("10.0.0.2"), s.address(1), s.excluded()
    (0, IPv4Address('10.0.0.3'), ((126, 253),))
    >>> s == Subnet(str(s), exclude=s.exclude)
    True
    """

    def __new__(
        cls, network: _AnyNetwork | Subnet, *, exclude: _Block | Iterable[_Block] = ()
    ) -> Self: ...
    @property
    def network(self) -> _Network:
        """The IPv4Network or IPv6Network."""

    @property
    def gateway(self) -> _Address | None:
        """The gateway's address, or None."""

    @property
    def prefixlen(self) -> int:
        """The length of the prefix: 0 to 32, or to 128 in IPv6."""

    @property
    def version(self) -> int:
        """4 or 6."""

    @property
    def size(self) -> int:
        """How many ordinals there are, the excluded ones included."""

    @property
    def capacity(self) -> int:
        """How many addresses may be given: the size less what is excluded."""

    @property
    def exclude(self) -> tuple[str, ...]:
        """The fewest addresses and networks, as text, that exclude the same from this network.

        Ascending. Equal Subnets have equal ones, and `Subnet(str(s), exclude=s.exclude) == s`.
        The gateway is not named. Linear in the number of runs.

        >>> Subnet("10.0.0.1/24", exclude=["10.0.0.8/31", "10.0.0.10", "10.0.0.11"]).exclude
        ('10.0.0.8/30',)
        """

    def excluded(self) -> tuple[tuple[int, int], ...]:
        """The ordinals that are never given, a gateway's included: (start, stop), ascending.

        One pair for each run, as long as possible; a tuple, so it may be read again and again.

        >>> Subnet("10.0.0.5/24", exclude="10.0.0.8/30").excluded()
        ((4, 5), (7, 11))
        """

    def ordinal(self, ip: _AnyAddress, /, *, allow_excluded: bool = False) -> int:
        """The ordinal of an address; of one that is excluded only with `allow_excluded`.

        An int is an address as a number, of 32 bits or 128. Raises InvalidValueError for what is
        no address, and OutOfRangeError, which says why, for one that is never given.

        >>> s = Subnet("10.0.0.1/24", exclude="10.0.0.9")
        >>> s.ordinal("10.0.0.9", allow_excluded=True)
        7
        """

    def address(self, i: SupportsIndex, /) -> _Address:
        """The address of an ordinal, be it excluded or not. Raises OutOfRangeError."""

    def __contains__(self, ip: object, /) -> bool:
        """Whether this address may be given; False for what is none."""

    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...
    def __reduce__(self) -> tuple[Any, ...]: ...
    def __sizeof__(self) -> int: ...

@final
class IPAllocator(Subnet):
    """The free and taken addresses of a network, given in order, round and round.

    A Subnet with a Bitmap over its ordinals: `network` and `exclude` are what they are there.
    It reads like a set of the addresses that are taken: `in`, `len`, iteration in ascending
    order. Text, address objects and ints are accepted; address objects come back.

    `cooldown` keeps a released address out for so many seconds of `clock`. At each call a few of
    those that have cooled longest come back, and as many more as the call needs: its cost does
    not grow with how many cool, or have cooled. One that cools weighs 32 bytes, 64 at most.

    Time and memory are those of Bitmap, and so is what holds of threads, forks and code that
    calls back; `clock` may do so too.

    Raises InvalidValueError and OutOfRangeError as Subnet does, also for a cooldown that is
    negative, endless or no number.

    >>> a = IPAllocator("10.0.0.1/29")
    >>> a.acquire(), a.acquire()
    (IPv4Address('10.0.0.2'), IPv4Address('10.0.0.3'))
    >>> "10.0.0.2" in a, len(a), a.available
    (True, 2, 3)
    >>> a.release("10.0.0.2")
    >>> [str(ip) for ip in a]
    ['10.0.0.3']
    """

    def __new__(
        cls,
        network: _AnyNetwork | Subnet,
        *,
        exclude: _Block | Iterable[_Block] = (),
        cooldown: SupportsFloat | SupportsIndex = 0.0,
        clock: Callable[[], float] = ...,
    ) -> Self: ...
    def acquire(self, *, allow_cooling: bool = False) -> _Address:
        """Take the next free address at or after the cursor, from the first on after the last.

        With `allow_cooling`, when nothing else is left, the one that has cooled longest.
        Raises ExhaustedError, which says how many are cooling and for how long.
        """

    def acquire_int(self, *, allow_cooling: bool = False) -> int:
        """The same as a number, at half the cost."""

    def acquire_many(self, n: SupportsIndex, /) -> list[_Address]:
        """Take n addresses, as a list in the order given; all or nothing.

        About 90 ns each, nearly all of which is making the objects. Raises ExhaustedError.

        >>> IPAllocator("fd00::1/64").acquire_many(2)
        [IPv6Address('fd00::2'), IPv6Address('fd00::3')]
        """

    def acquire_into(self, buffer: Buffer, /) -> int:
        """Fill a writable buffer with addresses as numbers, in order; all or nothing.

        32- or 64-bit integers; for IPv6 64-bit ones, which get the host part. Returns how many
        items were filled. About 0.1 ns each where nothing is taken and 2 where half is.

        Raises ExhaustedError; OutOfRangeError where an item could not hold the highest address
        (a signed 32-bit one holds none past 127.255.255.255); InvalidValueError as Bitmap does.

        >>> from array import array
        >>> a = array("I", bytes(8))
        >>> IPAllocator("10.0.0.1/8").acquire_into(a), int_to_ip(a[1])
        (2, IPv4Address('10.0.0.3'))
        """

    def acquire_block(self, n: SupportsIndex, /) -> _Address:
        """Take n addresses in a row and return the first: first fit from the cursor on.

        Looks at every word at worst: about 1 ms for a /8. Raises ExhaustedError.

        >>> IPAllocator("10.0.0.1/8").acquire_block(256)
        IPv4Address('10.0.0.2')
        """

    def reserve(self, ip: _AnyAddress, /, *, allow_cooling: bool = False) -> None:
        """Take this address and leave the cursor where it is; a cooling one if that is allowed.

        Raises InUseError when it is taken, or still cools, with the seconds left;
        OutOfRangeError for an address of another network and for one that is never given.

        >>> a = IPAllocator("10.0.0.1/24", cooldown=60, clock=lambda: 0.0)
        >>> a.release(a.acquire())
        >>> a.reserve("10.0.0.2")
        Traceback (most recent call last):
        netalloc.errors.InUseError: 10.0.0.2 cools down for 60.000 s more; ...
        >>> a.reserve("10.0.0.2", allow_cooling=True)
        """

    def release(self, ip: _AnyAddress, /) -> None:
        """Give this address back; if all were taken, it is the next one given.

        With a cool-down it comes back only after that. Raises NotAllocatedError, also while it
        cools; OutOfRangeError as `reserve` does.
        """

    def discard(self, ip: _AnyAddress, /) -> bool:
        """Give this address back if it is taken, as set.discard does; tell whether it was."""

    def release_many(self, ips: Buffer | Iterable[_AnyAddress], /) -> None:
        """Give all of these back or none: what `acquire_into` filled, or any iterable.

        About 1 ns each for a sorted buffer, 5 for a shuffled one; more with cool-down or
        exclusions. Raises NotAllocatedError, also where one is named twice, and OutOfRangeError.
        """

    def __contains__(self, ip: object, /) -> bool:
        """Whether this address is taken; False for one that cools, and for what is none."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[_Address]:
        """The taken addresses, ascending; each step looks anew, so it bears changes."""

    def runs(self) -> Iterator[tuple[_Address, _Address]]:
        """The taken addresses as ascending (first, last), both included."""

    @property
    def cooldown(self) -> float:
        """How many seconds a released address is kept out."""

    @property
    def available(self) -> int:
        """How many are free now; those that cool down are not.

        A step for each that has cooled and was not yet needed.
        """

    @property
    def nbytes(self) -> int:
        """Memory in bytes: this object, its bitmaps and, while addresses cool, their times."""

    def to_bytes(self) -> bytes:
        """The whole state: network, exclusions, cursor, what is taken, what cools and how long.

        Equal allocators give equal bytes. The clock is not in it.
        """

    @classmethod
    def from_bytes(cls, data: Buffer, /) -> Self:
        """The allocator that `to_bytes` wrote, cursor and remaining cool-downs included.

        Raises StoreError for bytes that are truncated, corrupt, foreign, of another version, or
        that contradict each other; InvalidValueError for what is not bytes.
        """

    def __reduce__(self) -> tuple[Callable[[bytes], Self], tuple[bytes]]: ...
    def _check(self) -> None: ...

def is_plain_text(text: object, limit: int, /) -> bool:
    """Whether it is an exact str of 1 to `limit` characters, all of ASCII and printable.

    20 ns for an owner of 10 characters.

    >>> is_plain_text("web", 255), is_plain_text("w\\x00b", 255), is_plain_text("w\u00e9b", 255)
    (True, False, False)
    """

@final
class RecordMaker(Generic[_R]):
    """Makes the records of a named tuple's class, which the collector need not know.

    The values are to be of exact types that are never part of a cycle. A fifth of the time of
    the class's own constructor.

    >>> from gc import is_tracked
    >>> from netalloc.store.records import Label
    >>> label = RecordMaker(Label).make((1, 2, "app", "shop"))
    >>> label == Label(1, 2, "app", "shop"), is_tracked(label)
    (True, False)
    """

    def __init__(self, kind: type[_R]) -> None: ...
    def make(self, values: tuple[Any, ...], /) -> _R:
        """The record with these values. Raises TypeError for another number of them."""

@final
class JournaledBitmap:
    """A Bitmap that notes in a list what it is about to change, so that it can be undone.

    Each method is one step for an interrupt: both the note and the change are there, or neither.

    >>> journal = []
    >>> bitmap = JournaledBitmap(10, journal)
    >>> bitmap.acquire(), bitmap.acquire()
    (0, 1)
    >>> bitmap.restore(journal.pop())
    >>> 1 in bitmap, bitmap.cursor
    (False, 1)
    """

    cursor: int
    @property
    def size(self) -> int:
        """How many ordinals there are."""

    next_free: Callable[[int], int | None]
    next_set: Callable[[int], int | None]
    previous_set: Callable[[int], int | None]
    next_block: Callable[[int, int], int | None]
    counts: Callable[[int, int, int], bytes]
    def __init__(self, size: int, journal: list[tuple[Any, ...]]) -> None: ...
    def acquire(self) -> int:
        """Take the first free ordinal at or after the cursor. Raises ExhaustedError."""

    def acquire_ranges(self, n: int, /) -> list[tuple[int, int]]:
        """Take the n ordinals that `acquire` would give, as a list of (start, stop)."""

    def reserve(self, i: int, /) -> None:
        """Take this ordinal. Raises InUseError."""

    def release(self, i: int, /) -> None:
        """Free this ordinal. Raises NotAllocatedError."""

    def restore(self, note: tuple[Any, ...], /) -> None:
        """Bring what a note is of, and the cursor, back to what it was.

        What was not changed is no error. O(ordinals).
        """

    def to_bytes(self) -> bytes:
        """What Bitmap.to_bytes says."""

    def __contains__(self, i: object, /) -> bool: ...
    def __len__(self) -> int: ...

@final
class RecordTable(Generic[_R]):
    """Records of one kind in memory: found by their key, or by the first fields of an index.

    A record is a named tuple of exact ints, texts and None. Entering, finding and removing one
    is O(fields), however many there are and share a value; a record takes one entry of a dict
    for the key and one for each index. `key` and `indexes` are names of fields; an index that
    ends with a time keeps the records of its first field in that order, and one that is in
    `descending`, of two fields of which the second is a number from 0 to 2**64 - 1, can be gone
    through downward. Neither the records nor
    the dicts are known to the collector. Each change is noted in `journal` first.

    >>> from netalloc.store.records import Cooldown
    >>> journal = []
    >>> table = RecordTable(Cooldown, ("network", "ordinal"), (("network", "ready_ns"),), journal)
    >>> table.add([Cooldown(1, 7, 50), Cooldown(1, 5, 60)])
    >>> table.get(1, 5)
    Cooldown(network=1, ordinal=5, ready_ns=60)
    >>> table.where("network", equal=(1,), limit=1)
    [Cooldown(network=1, ordinal=7, ready_ns=50)]
    >>> table.restore(journal.pop())
    >>> table.all()
    [Cooldown(network=1, ordinal=7, ready_ns=50)]
    """

    def __init__(
        self,
        kind: type[_R],
        key: tuple[str, ...],
        indexes: tuple[tuple[str, ...], ...],
        journal: list[tuple[Any, ...]],
        descending: tuple[tuple[str, ...], ...] = (),
    ) -> None: ...
    def __len__(self) -> int: ...
    def get(self, *key: int | str | None) -> _R | None:
        """The record of that key, or None."""

    def where(self, *fields: str, equal: tuple[int | str | None, ...], limit: int = -1) -> list[_R]:
        """Those whose first fields, of the key or of an index, have the values given.

        The oldest first, where an index goes on with a time. O(found). Raises KeyError for
        fields that are neither.
        """

    def up_to(self, *fields: str, equal: tuple[int | str | None, ...], limit: int) -> list[_R]:
        """Those with the first value given, and the second or a smaller one; the greatest first.

        O(found). Raises KeyError for fields that are no index of `descending`.
        """

    def oldest(self, limit: int) -> list[_R]:
        """The first ones by key; O(limit) where the key is one number that grows."""

    def all(self) -> list[_R]:
        """Every record, in no particular order."""

    def add(self, records: Iterable[_R]) -> None:
        """Put new records in.

        Raises StoreError where one of that key is there, TypeError for another kind of value.
        """

    def remove(self, records: Iterable[_R]) -> None:
        """Take records out. Raises StoreError where one is not there."""

    def discard(self, record: _R, /) -> bool:
        """Take a record out that is there as given; whether it was."""

    def replace(self, old: _R, new: _R, /) -> bool:
        """Put another record in the place of one that is there as given; whether it was."""

    def clear(self) -> None:
        """Take all records out. O(records)."""

    def restore(self, note: tuple[Any, ...], /) -> None:
        """Undo what a note is of, as far as it was done."""

@disjoint_base
class MemoryState:
    """Tables, bitmaps and counters in memory, and a journal of how they were.

    Each method is one step for an interrupt. See store.protocol.Transaction.
    """

    dirty: frozenset[int]
    ends_turn: bool
    _touched: frozenset[int]
    _committing: bool
    _store: Any
    @property
    def _journal(self) -> list[tuple[Any, ...]]: ...
    @property
    def _tables(self) -> dict[type[Any], RecordTable[Any]]: ...
    @property
    def _bitmaps(self) -> dict[str, JournaledBitmap]: ...
    @property
    def version(self) -> int:
        """A number that grows with every change made so far."""

    @property
    def committed(self) -> bool:
        """Whether the change is made for good."""

    def table(self, kind: type[_R], /) -> RecordTable[_R]:
        """The records of that kind."""

    def bitmap(self, name: str, size: int, /) -> JournaledBitmap:
        """The bitmap of that name, made empty when there is none."""

    def known(self, name: str, /) -> bool:
        """Whether there is a bitmap of that name."""

    def names(self, prefix: str, /) -> list[str]:
        """The names of bitmaps that begin with the prefix."""

    def drop(self, name: str, /) -> None:
        """Forget the bitmap of that name."""

    def restore(self, note: tuple[Any, ...], /) -> None:
        """Bring back, or take away, a bitmap."""

    def next(self, counter: str, n: int = 1) -> int:
        """The first of n numbers, from 1 up, that this counter never gave before."""

    def last(self, counter: str, /) -> int:
        """The last number that this counter gave, 0 before the first."""

    def commit(self) -> None:
        """Make the change last."""

    def rollback(self) -> None:
        """Undo all of it, from the last change to the first; what it marked stays dirty."""

@disjoint_base
class MemoryTurn:
    """One thread at a time changes a MemoryState; see store.protocol.Store.

    `lock` is an RLock, and `_refusal(operation)` makes the error of a call that is not let in.
    """

    _taken: bool
    _closed: bool
    @property
    def _turn(self) -> Any: ...
    def __init__(self, lock: Any, state: MemoryState) -> None: ...
    @property
    def foreign(self) -> bool:
        """Whether this process has it by a fork."""

    def run(self, operation: str, work: Callable[[Any], _T], *, durable: bool = False) -> _T:
        """Make a change as soon as no other thread is in the middle of one."""

    def view(self, work: Callable[[Any], _T], /) -> _T:
        """What `work(tx)` makes of it; what it changes is undone."""

    def run_view(self, work: Callable[[Any], _T], calls: Any, /) -> _T:
        """The same for a manager: its closing waits for the turn.

        Raises ClosedError where calls are closed.
        """

    def run_change(
        self,
        operation: str,
        change: Callable[[Change], _T],
        committer: Any,
        calls: Any,
        /,
    ) -> _T:
        """What `change(made)` returns, in a turn: records, then the kernel, then the commit.

        What is more than records is in `calls.inside` from before its turn ends until it is
        over, whether it was made or not. `committer` has the methods `repair`, `seal`, `undo`
        and `cut_off`. Raises ClosedError where calls are closed.
        """

    def wait(self) -> None:
        """Until the turn that is under way, if there is one, is over."""

@disjoint_base
class InterfaceState:
    """A lease and the service that it is of, unknown to the collector where there is no need.

    Half a million objects would be gone through at each full collection, which takes 0.3 s.
    There is need where `leases.calls_back`: a caller's object stands behind the service, and
    may lead back to this one.
    """

    _leases: Any
    _lease: Any
    _labels: dict[str, str] | None
    _released: bool
    def __new__(cls, leases: Any, lease: Any, labels: dict[str, str] | None = None) -> Self: ...

@final
class Doorbell:
    """Two bells at a place of a file, where processes sleep until one is rung.

    Each is a word of 32 bits in the file, 0 at first, that counts how often it was rung; the
    offset is a multiple of the size of a page. Who looks at the word first, and then at what it
    waits for, misses no ring. Those that sleep are woken one by one, in the order in which they
    came. It is Linux's futex(2); OSError is raised for a file that cannot be mapped.

    >>> import os
    >>> from tempfile import TemporaryFile
    >>> with TemporaryFile() as file:
    ...     _ = file.truncate(8)
    ...     door = Doorbell(file.fileno(), 0)
    ...     seen = os.pread(file.fileno(), 4, 0)
    ...     quiet = door.sleep(0, seen, 0.001)
    ...     door.ring(0)
    ...     quiet, door.sleep(0, seen, 0.001)
    (False, True)
    """

    def __new__(cls, fd: int, offset: int, /) -> Self: ...
    def sleep(self, bell: int, seen: bytes, seconds: float, /) -> bool:
        """Whether it was rung since it was seen like that, or within so many seconds.

        A signal cuts the time short: its handler runs, and what that raises is raised. OSError
        is raised where the file was cut off, or is of a kind at which none can sleep.
        """

    def ring(self, bell: int, /) -> None:
        """Count a ring, and wake the one that has slept longest there; 0.5 microseconds.

        OSError is raised where the file was cut off.
        """

@final
class Change:
    """What one operation does: records in `tx`, the kernel's part in `add` and `remove`.

    `undo` is called when the change is not made after all, `after` when it is. Each list is
    made when it is asked for: most changes need none.

    >>> change = Change()
    >>> change.after.append(print)
    >>> change.add, change.after
    ([], [<built-in function print>])
    """

    tx: Any
    add: list[Any]
    remove: list[Any]
    additions: list[Any] | None  # `add`, `remove` and `after`, None where none was asked for
    removals: list[Any] | None
    finishing: list[Callable[[], Any]] | None
    @property
    def undo(self) -> list[Callable[[], Any]]:
        """What is called when the change is not made after all."""

    @property
    def after(self) -> list[Callable[[], Any]]:
        """What is called when it is made."""

    def __new__(cls, tx: Any = None) -> Self: ...

def row_checksum(values: tuple[int | str | bytes | None, ...], seed: int, /) -> int:
    """The CRC-32 of ascii(values), begun with `seed`.

    >>> import zlib
    >>> row_checksum((1, "web", None), 7) == zlib.crc32(b"(1, 'web', None)", 7)
    True
    """

@final
class RowMaker(Generic[_R]):
    """Makes the rows of a kind of records, and records of rows, where that is a plain matter.

    A row has the values of a record and behind them their checksum, begun with `seed`. What is
    not plain, a text that is not of ASCII or a number of more than 63 bits, is left to the caller.
    """

    def __init__(self, kind: type[_R], seed: int) -> None: ...
    def row(self, record: _R, /) -> tuple[Any, ...] | None:
        """The row of a record; None where it is not plain, or cannot be stored."""

    def rows(self, records: list[_R], /) -> list[tuple[Any, ...]] | None:
        """The rows of records; None where not all are plain."""

    def change(self, old: _R, new: _R, /) -> tuple[tuple[int, ...], tuple[Any, ...]] | None:
        """At which places the rows of two records differ, and the new values there and the old row.

        At one place at least. None where one of the two is not plain.
        """

    def record(self, row: tuple[Any, ...], /) -> _R | None:
        """The record of a row; None where it is not plain, or damaged."""

@final
class Span:
    """Leaves of a stored bitmap, from `first` to before `stop`, and where the next span begins.

    One leaf, of which some ordinals are taken, has `bits`; all that are wholly taken have none.
    """

    first: int
    stop: int
    following: int
    bits: Bitmap | None
    def __init__(
        self, first: int, stop: int, following: int, bits: Bitmap | None = None
    ) -> None: ...

@disjoint_base
class StoredSpans:
    """Of a bitmap in a file: its spans as far as they are read, and what every call does.

    A class on top of it reads spans, divides and joins them: `_find(leaf)`, `_take(ordinal, n)`,
    `_give(ordinal, n)`, `_fill(span)`, `_check(ordinal)`.
    """

    name: str
    size: int
    count: int
    changes: int
    written: int
    dirty: set[int]
    _leaves: int
    _load: Callable[[int], Span | None]
    _head: Span
    _cursor: int
    _by_first: dict[int, Span]
    _starts: list[int]
    _early: str
    _runs: int
    _last: tuple[bool, int, int] | None
    def __len__(self) -> int: ...
    def __contains__(self, ordinal: int, /) -> bool: ...
    @property
    def cursor(self) -> int:
        """Where the next search begins."""

    @cursor.setter
    def cursor(self, ordinal: int) -> None:
        """Raises OutOfRangeError."""

    @property
    def journal(self) -> str:
        """What was taken (+) and given back (-) since the spans were written, in its order."""

    def acquire(self) -> int:
        """The first free ordinal at or after the cursor, or else the first one.

        Raises ExhaustedError.
        """

    def reserve(self, ordinal: int, /) -> None:
        """Take that ordinal; the cursor stays. Raises InUseError, OutOfRangeError."""

    def release(self, ordinal: int, /) -> None:
        """Give that ordinal back; if all were taken, it is the next one.

        Raises NotAllocatedError, OutOfRangeError.
        """

    def next_free(self, start: int, /) -> int | None:
        """The first free ordinal from start on."""

    def counts(self, first: int, cell: int, n: int, /) -> bytes:
        """How many are taken in each of n cells, as Bitmap.counts says it. O(spans and cells).

        Raises OutOfRangeError, StoreError.
        """

    def _note(self, taken: bool, start: int, stop: int, /) -> None: ...

@final
class FilePlace:
    """A path, and the file that it led to: its device and inode.

    >>> import os
    >>> found = os.stat("/")
    >>> FilePlace(b"/", found.st_dev, found.st_ino).is_there()
    True
    """

    def __init__(self, path: bytes, device: int, inode: int) -> None: ...
    def is_there(self) -> bool:
        """Whether the path leads to that file now. Raises OSError where it cannot be told."""

@disjoint_base
class SqlRunner:
    """Statements over one cursor of a connection of sqlite3's; see store.sqlite.connection.

    What is raised in `_faults` is raised as what `_translated(error)` makes of it.
    """

    full: bool | None  # whether commits sync, once that was said
    _faults: tuple[type[BaseException], ...]
    @property
    def _raw(self) -> Connection: ...
    @property
    def _cursor(self) -> Cursor: ...
    def _begin(self, raw: Connection, faults: tuple[type[BaseException], ...]) -> None: ...
    def execute(self, sql: str, values: tuple[Any, ...] = (), /) -> None:
        """Run a statement that answers nothing."""

    def change(self, sql: str, values: tuple[Any, ...], /) -> int:
        """Run a statement; how many rows it changed."""

    def many(self, sql: str, values: Iterable[tuple[Any, ...]], /) -> int:
        """Run a statement for each of the values; how many rows changed."""

    def rows(self, sql: str, values: tuple[Any, ...] = (), /) -> list[tuple[Any, ...]]:
        """All rows of a query."""

    def commit(self, done: list[Any], /) -> None:
        """Commit, and put something into `done`: one step, which no interrupt divides."""

@disjoint_base
class FileChangeState:
    """What a transaction of a file knows; see store.sqlite.transaction.

    `owner` is the store that it belongs to. Where it is made step by step, `ended` is called
    when it is over.
    """

    owner: object
    ended: Callable[[], None] | None
    operation: str
    boot: str
    thread: int
    dirty: frozenset[int]
    sequence: int
    bitmap: Callable[[str, int], Any]
    names: Callable[[str], list[str]]
    known: Callable[[str], bool]
    drop: Callable[[str], None]
    table: Callable[[type[Any]], Any]
    over: bool
    _abandoned: bool
    _said: bool
    _done: list[Any]
    _connection: Any
    _end_of_boot: Callable[[Any], None] | None
    _lock: Any
    _path: Any
    _target: int
    _touched: frozenset[int]
    _written: int
    def __new__(
        cls,
        path: object,
        connection: object,
        lock: object,
        owner: object,
        end_of_boot: Callable[[Any], None] | None = None,
    ) -> Self: ...
    @property
    def committed(cls) -> bool:
        """Whether the change is in the file, even where commit() was interrupted after."""

    def state(self, mark: Any, /) -> str:
        """Read the state row; the boot it belongs to. Raises StoreError for an old file."""

    def start(self, operation: str, mark: Any, boot: str, /) -> None:
        """Read the state, say who is at it, and end the last boot if this is another one."""

    def commit(self) -> None:
        """Make the change last, and clean what it marked. On an error nothing of it is there."""

    def _finish(self) -> None: ...
    def next(self, counter: str, n: int = 1) -> int:
        """The first of n numbers, from 1 up, that this counter never gave before."""

    def last(self, counter: str, /) -> int:
        """The last number that this counter gave, 0 before the first; of this transaction too."""

@disjoint_base
class FileTurn:
    """A change of a file in its turn: the thread's, then the process's; see store.sqlite.store.

    Its transaction is made by `_transaction(connection)`, and undone by `_undo(error)`. One step
    for an interrupt, but for what it calls: so what was taken is given back.
    """

    timeout: float
    boot: str
    path: str
    _file: Any
    _end_of_boot: Callable[[Any], None]
    _closed: bool
    def _start(self, operation: str, durable: bool) -> Any: ...
    def run(self, operation: str, work: Callable[[Any], _T], *, durable: bool = False) -> _T:
        """Make a change, when those before are done; see Store."""

def checked_line(text: str, length: int, /) -> bytes:
    """A text with its checksum behind it, and spaces up to `length`: a line of bytes.

    >>> checked_line("text", 20)
    b'text|3b8ba7c7      \\n'
    """

def counters_text(counters: dict[str, int], /) -> str:
    """Counters as the state row has them.

    >>> counters_text({"store": 7, "generation": 2})
    'store=7 generation=2'
    """

def journals_text(journals: dict[str, str], /) -> str:
    """Journals of bitmaps, by name, as the state row has them."""

def run_alone(
    committer: Any,
    calls: Any,
    run: Callable[..., Any],
    operation: str,
    change: Callable[[Change], _T],
    durable: bool,
    /,
) -> _T:
    """What `change(made)` returns, in a transaction of its own that the store's `run` makes.

    It is in `calls.inside` meanwhile, and until what is to be done after it is done. Raises
    ClosedError where calls are closed. One step for an interrupt, but for what it calls.
    """

@disjoint_base
class MappingState:
    """A host port, or `count` adjacent ones, and where they lead; see model.PortMapping.

    Values that are plain are taken as they are, in 0.2 µs. Others are for the class's
    `_plain(host_port, dest, protocol, host_ip, count, owner)`, which gives the same six, plain,
    or raises. All of them are ints, texts and addresses, so the collector need not know.
    """

    host_port: int
    dest: tuple[IPv4Address | IPv6Address, int]
    protocol: str
    host_ip: IPv4Address | IPv6Address | None
    count: int
    owner: str | None
    @property
    def dest_number(self) -> int:
        """The address that it leads to, as a number."""

    @property
    def version(self) -> int:
        """4 or 6, the version of IP that it is about."""

    def packed(self, between: bytes, /) -> bytes:
        """Host address if there is one, protocol, host port; what goes between; address, port.

        In network order, each padded to four bytes, as keys and values of the kernel's maps are.
        """

    def __new__(
        cls,
        host_port: int,
        dest: tuple[IPv4Address | IPv6Address | str, int],
        protocol: str = "tcp",
        host_ip: IPv4Address | IPv6Address | str | None = None,
        count: int = 1,
        owner: str | None = None,
    ) -> Self: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

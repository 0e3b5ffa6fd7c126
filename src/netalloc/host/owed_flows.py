"""Flushes of flows that are owed: noted before a change is committed, made after it.

To look at every flow takes milliseconds where there are many, so it is done when the change
is made and no lock is held, by the caller that made it, and before its call returns. Until
then addresses and ports that have come free are given to others already. So what is owed
stands in a file of the network namespace, for all its processes to see:

- A caller that got such an address or port waits, after its own commit, for the flush that
  concerns it: it returns when no stale flow leads there any more. Others pass.
- What a dead process owes, the next one flushes that looks; so does the one that waits where
  the flush does not come within a second, as the process may be stopped.

The file has a byte for each flush under way, which is not 0 while it is owed, and a place for
what it is. The byte is locked by its process (OFD, fcntl(2)), so the kernel tells of the dead.
To look costs one read, 0.6 µs; to note a flush two writes.
"""

import logging
import os
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from threading import Lock, get_ident
from typing import NamedTuple
from weakref import WeakSet

from netalloc.closing import Closing
from netalloc.errors import NetallocError
from netalloc.host import netns, runtime_dir
from netalloc.host.conntrack import Flows
from netalloc.host.flow_messages import NUMBERS
from netalloc.host.namespace_lock import FLOWS, file_name
from netalloc.host.ofd_lock import NONE, WRITE, is_locked, set_lock
from netalloc.locks import holding
from netalloc.model import PortMapping

log = logging.getLogger(__name__)

_SLOTS = 4096  # flushes under way at a time, on a host
_STRIDE = 1 << 24  # bytes for one of them; what is not written takes no room
_HEAD = struct.Struct("=QI")  # when it was noted, and how many times 16 bytes follow
# Kind, protocol, host port, count, container port, the host's address and the container's. Of
# IPv6 these are too long, and stand in two more items behind it.
_ITEM = struct.Struct("=BBHHHII")
_OF_IPV6 = 0x80  # in the kind
_MOST = (_STRIDE - _HEAD.size) // _ITEM.size
_PROTOCOLS = {number: name for name, number in NUMBERS.items()}
_PATIENCE = 1.0  # seconds; a flush takes 30 ms with 200,000 flows
_PAUSE = 0.0005
_FROM_FIRST = range(_SLOTS - 1, -1, -1)  # so that the bytes in use are the first ones
_OWED, _IDLE = b"\1", b"\0"

ENDED, REMOVED, ADDED = 1, 2, 3  # with its container, alone, and just now

_open: "WeakSet[OwedFlows]" = WeakSet()


class _Item(NamedTuple):
    kind: int
    mapping: PortMapping


class OwedFlush:
    """The flush that one change owes. One that is dropped unmade is made by the next that looks."""

    def __init__(self, owner: "OwedFlows", kind: int, mappings: Sequence[PortMapping]) -> None:
        self._owner = owner
        self.items = [_Item(kind, mapping) for mapping in mappings]
        self.slot = -1
        self.token = object()  # tells it from a later one in the same place
        self.over = False

    def note(self) -> None:
        """Before the change is committed. Raises NetallocError where it cannot be noted."""
        self._owner.note(self)

    def cancel(self) -> None:
        """The change was not made."""
        self._owner.clear(self)

    def settle(self) -> None:
        """Make the flush, with those that wait for one. What fails is logged, and stays owed."""
        self._owner.settle(self)

    def drop(self) -> None:
        """Leave it to the next one."""
        if self.slot >= 0 and not self.over:
            self.over = True
            self._owner.dropped.append((self.slot, self.token, self.items))

    def __del__(self) -> None:
        self.drop()


class OwedFlows(Closing):
    """What is owed in the network namespace of the caller; safe for threads and across fork."""

    def __init__(self) -> None:
        self._home = netns.current()
        self._name = file_name(*self._home) + FLOWS
        self._flows = Flows()
        self._lock = Lock()
        self._flushing = 0  # the thread that does
        self._waiting: list[OwedFlush] = []
        self.dropped: list[tuple[int, object, list[_Item]]] = []
        self._fd: int | None = None
        self._forget()
        _open.add(self)

    def note(self, owed: OwedFlush) -> None:
        """Write down what is owed."""
        packed = b"".join(map(_packed, owed.items))
        size = len(packed) // _ITEM.size
        if size > _MOST:
            limit = _MOST * len(owed.items) // size
            raise NetallocError(f"{len(owed.items)} mappings at once; the limit is {limit}")
        self._flows.open()  # what the flush needs is there before anything has changed
        fd = self._file()
        owed.slot = slot = self._slot(fd)
        self._using[slot] = owed.token
        data = _HEAD.pack(time.monotonic_ns(), size) + packed
        try:
            place = _place(slot)
            while data:
                done = os.pwrite(fd, data, place)
                place, data = place + done, data[done:]
            os.pwrite(fd, _OWED, slot)
        except OSError as error:
            raise NetallocError(f"flows to flush cannot be noted: {error.strerror}") from error

    def clear(self, owed: OwedFlush) -> None:
        """It is no longer owed."""
        if owed.slot >= 0 and not owed.over:
            self._clear(owed.slot, owed.token)
            owed.over = True

    def settle(self, owed: OwedFlush) -> None:
        """Make a flush that is owed, unless another thread has made it along with its own."""
        if self._flushing == get_ident():  # in a signal handler, while this thread is at it
            if self._flushed_apart(owed.items):
                self.clear(owed)
            return
        self._waiting.append(owed)
        holding(self._lock, -1, "", partial(self._make_all, owed))

    def wait(self, addresses: Iterable[int], mappings: Sequence[PortMapping] = ()) -> None:
        """Return when nothing is owed any more that leads to these addresses or host ports.

        To be called when they have been got for good. About 0.6 µs where nothing is owed.
        """
        fd = self._file()
        states = os.pread(fd, _SLOTS, 0)
        if self.dropped or any(states):
            self._wait(fd, states, _concerning(set(addresses), mappings))

    def finish(self) -> None:
        """Make what this process has dropped, and what dead ones have left."""
        self.wait(())

    def close(self) -> None:
        """Finish, and give the file back; twice is no error, and the next call opens it again."""
        try:
            if self._fd is not None:
                self.finish()
        finally:
            fd, self._fd = self._fd, None
            if fd is not None:
                runtime_dir.close_file(fd)
            self._forget()
            self._flows.close()

    def after_fork(self) -> None:
        """In a child: the locks are the parent's."""
        fd = self._fd
        self._forget()
        self._lock, self._flushing, self._waiting = Lock(), 0, []
        self.dropped = []
        if fd is not None:
            runtime_dir.close_file(fd)

    def _forget(self) -> None:
        self._fd = None
        self._free: list[int] = []
        self._using: dict[int, object] = {}
        self._untried = list(_FROM_FIRST)
        self._held: set[int] = set()

    def _file(self) -> int:
        fd = self._fd
        if fd is None:
            with runtime_dir.opened() as directory:
                fd = self._fd = runtime_dir.open_file(directory, self._name)
        return fd

    # ---- places

    def _slot(self, fd: int) -> int:
        """One for this thread alone: a list gives each of its items once."""
        while self._free:
            with suppress(IndexError):
                return self._free.pop()
        while self._untried:
            with suppress(IndexError):
                slot = self._untried.pop()
                if _lock(fd, WRITE, slot):
                    if os.pread(fd, 1, slot) != _OWED:
                        self._held.add(slot)
                        return slot
                    _lock(fd, NONE, slot)  # of a dead process
        self._untried = [slot for slot in _FROM_FIRST if slot not in self._held]
        raise NetallocError(f"{_SLOTS} flushes of flows are under way on this host")

    def _clear(self, slot: int, token: object) -> None:
        """May be cut off anywhere, and called again: at worst the place is lost to this process."""
        if self._using.get(slot) is token:
            os.pwrite(self._file(), _IDLE, slot)
            del self._using[slot]
            self._free.append(slot)

    def _items(self, fd: int, slot: int) -> list[_Item]:
        head = os.pread(fd, _HEAD.size, _place(slot))
        if len(head) < _HEAD.size:
            return []
        size = _HEAD.unpack(head)[1] * _ITEM.size
        data = os.pread(fd, size, _place(slot) + _HEAD.size)
        return list(_unpacked(data[: len(data) // _ITEM.size * _ITEM.size]))

    # ---- flushing

    def _make_all(self, owed: OwedFlush) -> None:
        if owed.over:
            return
        self._flushing = get_ident()
        try:
            waiting, self._waiting = self._waiting, []
            self._make(self._flows, list({id(one): one for one in [*waiting, owed]}.values()))
        finally:
            self._flushing = 0

    def _make(self, flows: Flows, owed: list[OwedFlush]) -> None:
        if _flushed(flows, [item for one in owed if not one.over for item in one.items]):
            for one in owed:
                self.clear(one)
        else:
            for one in owed:
                one.drop()

    def _flushed_apart(self, items: Sequence[_Item]) -> bool:
        """Make a flush over sockets of its own; whether it is made."""
        if netns.current() != self._home:
            log.warning("stale flows stay: this thread is in another network namespace than they")
            return False
        with Flows() as flows:
            return _flushed(flows, items)

    # ---- waiting

    def _wait(self, fd: int, states: bytes, concerned: Callable[[_Item], bool]) -> None:
        for _ in range(len(self.dropped)):
            with suppress(IndexError):
                slot, token, items = self.dropped.pop()
                if self._flushed_apart(items):
                    self._clear(slot, token)
                else:
                    self.dropped.append((slot, token, items))
        for slot, state in enumerate(states):
            if state and not self._mended(fd, slot):
                self._wait_for(fd, slot, concerned)

    def _mended(self, fd: int, slot: int) -> bool:
        """Whether the flush was a dead process's, and is made."""
        if slot in self._held or is_locked(fd, slot):
            return False
        with runtime_dir.opened() as directory:
            own = runtime_dir.open_file(directory, self._name)  # other threads' locks are not its
        try:
            if not os.path.sameopenfile(own, fd) or not _lock(own, WRITE, slot):
                return False
            if os.pread(own, 1, slot) == _OWED:
                if not self._flushed_apart(self._items(own, slot)):
                    return False
                os.pwrite(own, _IDLE, slot)
            return True
        finally:
            runtime_dir.close_file(own)

    def _wait_for(self, fd: int, slot: int, concerned: Callable[[_Item], bool]) -> None:
        when = os.pread(fd, 8, _place(slot))
        items = [item for item in self._items(fd, slot) if concerned(item)]
        deadline = time.monotonic() + _PATIENCE
        while items and os.pread(fd, 1, slot) == _OWED and os.pread(fd, 8, _place(slot)) == when:
            if time.monotonic() >= deadline:
                self._flushed_apart(items)
                return
            if self._mended(fd, slot):
                return
            time.sleep(_PAUSE)


def _flushed(flows: Flows, items: Sequence[_Item]) -> bool:
    """Make the flush of these; whether it is made."""
    try:
        flows.forget([item.mapping for item in items if item.kind == ENDED])
        for kind in (REMOVED, ADDED):
            mappings = [item.mapping for item in items if item.kind == kind]
            flows.flush(mappings, added=kind == ADDED)
    except NetallocError:
        log.exception("flows that a change has made stale stay until the next change")
        return False
    return True


def _concerning(addresses: set[int], mappings: Sequence[PortMapping]) -> Callable[[_Item], bool]:
    """Whether what an item is about is now another's: its container's address, or its port."""

    def concerned(item: _Item) -> bool:
        old = item.mapping
        if item.kind == ADDED:
            return False
        return old.dest_number in addresses or any(_overlap(old, new) for new in mappings)

    return concerned


def _overlap(one: PortMapping, two: PortMapping) -> bool:
    return (
        one.protocol == two.protocol
        and one.version == two.version
        and one.host_port < two.host_port + two.count
        and two.host_port < one.host_port + one.count
        and (None in (one.host_ip, two.host_ip) or one.host_ip == two.host_ip)
    )


def _place(slot: int) -> int:
    return _SLOTS + slot * _STRIDE


def _packed(item: _Item) -> bytes:
    kind, mapping = item
    ip, port = mapping.dest
    at, number = mapping.host_ip, NUMBERS[mapping.protocol]
    what = number, mapping.host_port, mapping.count, port
    if ip.version == 6:
        host_ip = bytes(16) if at is None else at.packed
        return _ITEM.pack(kind | _OF_IPV6, *what, 0, 0) + host_ip + ip.packed
    return _ITEM.pack(kind, *what, 0 if at is None else int(at), int(ip))


def _unpacked(data: bytes) -> Iterator[_Item]:
    """The items; where the end of one is cut off, those before it."""
    make: type[IPv4Address | IPv6Address]
    place = 0
    while place < len(data):
        kind, number, host_port, count, port, *numbers = _ITEM.unpack_from(data, place)
        place, make = place + _ITEM.size, IPv4Address
        if kind & _OF_IPV6:
            kind, make = kind & ~_OF_IPV6, IPv6Address
            numbers = [int.from_bytes(data[i : i + 16], "big") for i in (place, place + 16)]
            place += 32
            if place > len(data):
                return
        host_ip, ip = numbers
        at = make(host_ip) if host_ip else None
        mapping = PortMapping(host_port, (make(ip), port), _PROTOCOLS[number], at, count)
        yield _Item(kind, mapping)


def _lock(fd: int, kind: int, slot: int) -> bool:
    """Whether the lock of a place could be had; not over a descriptor that is closed by now."""
    try:
        return set_lock(fd, kind, slot)
    except NetallocError:
        return False


def _after_fork() -> None:
    for one in list(_open):
        one.after_fork()


os.register_at_fork(after_in_child=_after_fork)

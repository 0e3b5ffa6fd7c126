"""One process after the other at one file: what it waits with, and what it reads anew."""

import os
import random
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from netalloc._alloc import Doorbell
from netalloc.errors import NetallocError, OutOfRangeError
from netalloc.store.sqlite import write_lock
from netalloc.store.sqlite.session import Session
from netalloc.store.sqlite.store import SqliteStore
from netalloc.store.sqlite.write_lock import WriteLock
from netalloc.store.sqlite.writer_record import WriterRecord

LONG = 30.0  # seconds that no test takes: where it does, nothing has woken it


@pytest.fixture
def door(tmp_path):
    path = tmp_path / "door"
    path.write_bytes(bytes(8))
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


def asleep(task, bell, pid=None):
    """Wait until a thread sleeps by that bell, as the kernel tells of its futex(2)."""
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        call = Path(f"/proc/{pid or os.getpid()}/task/{task}/syscall").read_text().split()
        # FUTEX_WAIT, not private: Python's own locks use another operation. The address within
        # the page tells the bell.
        if len(call) > 6 and call[2] == "0x0" and int(call[1], 16) % 4096 == 4 * bell:
            return
        time.sleep(0.001)
    raise AssertionError("it does not sleep there")


# ---- the doorbell


def sleeper(fd, bell, told):
    child = os.fork()
    if child:
        return child
    try:
        if Doorbell(fd, 0).sleep(bell, bytes(4), LONG):
            os.write(told, f"{os.getpid()} ".encode())
        os._exit(0)
    except BaseException:
        os._exit(1)


def test_a_bell_wakes_the_process_that_has_slept_longest_there(door):
    told, tell = os.pipe()
    children = []
    try:
        for bell in (0, 0, 1, 0):
            children.append(sleeper(door, bell, tell))
            asleep(children[-1], bell, children[-1])
        bells = Doorbell(door, 0)
        order = []
        for bell in (1, 0, 0, 0):
            bells.ring(bell)
            order.append(int(os.read(told, 100)))
        assert order == [children[i] for i in (2, 0, 1, 3)]
    finally:
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        os.close(told)
        os.close(tell)


def test_a_sleep_ends_with_its_time_or_with_a_signal(door):
    class Interrupt(Exception):
        pass

    def handler(*_):
        raise Interrupt

    bells = Doorbell(door, 0)
    begin = time.monotonic()
    assert bells.sleep(0, bytes(4), 0.02) is False
    assert time.monotonic() - begin >= 0.02
    old = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        with pytest.raises(Interrupt):
            bells.sleep(0, bytes(4), LONG)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def test_a_bell_that_was_rung_since_it_was_looked_at_is_heard(door):
    bells = Doorbell(door, 0)
    bells.ring(1)
    assert bells.sleep(1, bytes(4), LONG)
    seen = os.pread(door, 4, 4)
    assert int.from_bytes(seen, sys.byteorder) == 1
    assert not bells.sleep(1, seen, 0.001) and not bells.sleep(0, bytes(4), 0.001)


def test_at_a_file_that_is_cut_off_or_none_no_process_sleeps_and_none_dies(door):
    bells = Doorbell(door, 0)
    for seen in (b"", bytes(3), bytes(5)):
        with pytest.raises(OSError, match="cut off"):
            bells.sleep(0, seen, LONG)
    for bell in (-1, 2):
        with pytest.raises(OutOfRangeError):
            bells.ring(bell)
    os.ftruncate(door, 0)
    with pytest.raises(OSError, match="cannot sleep"):
        bells.sleep(0, bytes(4), LONG)
    with pytest.raises(OSError, match="cannot ring"):
        bells.ring(0)
    pipes = os.pipe()
    for fd in pipes:
        with pytest.raises(OSError, match="memory"):
            Doorbell(fd, 0)
        os.close(fd)


# ---- the write lock


def holder_of(path):
    """A write lock that is held, with a record that a waiter can sleep at."""
    lock = WriteLock(path)
    lock.enter("hold")
    lock.write(WriterRecord(boot="boot", sequence=1))
    return lock


def started(lock, operation, order=None):
    """A thread that has the lock once."""

    def work():
        lock.enter(operation, LONG)
        if order is not None:
            order.append(operation)
        lock.leave()

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_the_end_of_a_burst_wakes_the_next_one_and_its_place_the_one_behind(tmp_path, monkeypatch):
    """None of them looks by itself."""
    for name in ("_OFTEN", "_SELDOM", "_SLEEP"):
        monkeypatch.setattr(write_lock, name, LONG)
    path = f"{tmp_path}/x.lock"
    order, begin = [], time.monotonic()
    locks = holder_of(path), WriteLock(path), WriteLock(path)
    first = started(locks[1], "first", order)
    asleep(first.native_id, write_lock._NEXT)
    second = started(locks[2], "second", order)
    asleep(second.native_id, write_lock._IN_QUEUE)
    locks[0].leave()
    locks[0]._until = 0.0  # its burst is over
    last = started(locks[0], "last", order)
    first.join(LONG / 2)
    assert order[:1] == ["first"]
    for thread in (second, last):
        while thread.is_alive():
            thread.join(0.5)
            locks[0]._doorbell.ring(write_lock._NEXT)  # where the one before was still at it
    for one in locks:
        one.close()
    assert sorted(order[1:]) == ["last", "second"]
    assert time.monotonic() - begin < LONG / 2


def test_within_its_burst_a_process_is_left_alone_and_an_idle_one_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(write_lock, "_BURST", LONG)
    for name in ("_OFTEN", "_SELDOM"):  # longer than the processor is ever away
        monkeypatch.setattr(write_lock, name, 0.2)
    path = f"{tmp_path}/x.lock"
    lock, waiting = holder_of(path), WriteLock(path)
    got = []
    thread = started(waiting, "wait", got)
    asleep(thread.native_id, write_lock._NEXT)
    sequence, end = 1, time.monotonic() + 1.0
    while time.monotonic() < end and not got:
        sequence += 1
        lock.leave()
        lock.enter("hold")
        lock.write(WriterRecord(boot="boot", sequence=sequence))
    busy = list(got)
    lock.leave()  # and does no more
    thread.join(LONG / 2)
    assert (busy, got) == ([], ["wait"])
    for one in (lock, waiting):
        one.close()


def test_in_the_queue_a_process_sleeps_instead_of_trying(tmp_path, monkeypatch):
    path = f"{tmp_path}/x.lock"
    lock, first, second = holder_of(path), WriteLock(path), WriteLock(path)
    tries = []
    taken = write_lock._taken

    def counted(fd, take):
        tries.append(fd)
        return taken(fd, take)

    monkeypatch.setattr(write_lock, "_taken", counted)
    threads = [started(first, "first")]
    asleep(threads[0].native_id, write_lock._NEXT)
    threads.append(started(second, "second"))
    asleep(threads[1].native_id, write_lock._IN_QUEUE)
    time.sleep(0.3)
    found = tries.count(second._fd)
    lock.leave()
    for thread in threads:
        thread.join(LONG / 2)
    for one in (lock, first, second):
        one.close()
    assert found <= 12  # one for every 50 ms, and some at first


def test_one_that_is_killed_at_the_lock_lets_the_next_in_at_once(tmp_path):
    path = f"{tmp_path}/x.lock"
    holder_of(path).close()
    told, tell = os.pipe()
    child = os.fork()
    if not child:
        holder_of(path)
        os.write(tell, b"x")
        signal.pause()
    os.read(told, 1)
    lock = WriteLock(path)
    timer = threading.Timer(0.05, os.kill, (child, signal.SIGKILL))
    timer.start()
    begin = time.monotonic()
    lock.enter("next", LONG)
    waited = time.monotonic() - begin
    timer.join()
    os.waitpid(child, 0)
    lock.close()
    os.close(told)
    os.close(tell)
    assert waited < 0.5


def test_a_record_that_is_as_it_was_is_not_parsed_again(tmp_path):
    lock = holder_of(f"{tmp_path}/x.lock")
    record = lock._last[1]
    lock.leave()
    assert lock.enter("again") is record
    long = WriterRecord(7, "x", "boot", 3, frozenset(range(1, 9000, 2)), 5)
    lock.write(long)
    assert lock.enter("again") is long
    lock.close()


# ---- what is read


class Reader:
    """A connection of its own, as another process has one, and what it asks the file."""

    def __init__(self, path):
        self.session = Session(path)
        self.asked = []
        self.session._raw.set_trace_callback(self.asked.append)

    def begin(self):
        self.asked.clear()
        self.session.execute("BEGIN IMMEDIATE")
        return self.session.begin()

    def change(self, work):
        sequence = self.begin()
        work(self.session.bitmaps)
        self.session.write(sequence + 1, "boot", [])

    def rows_read(self):
        return [sql for sql in self.asked if "FROM span" in sql or "FROM bitmap" in sql]


@pytest.fixture
def readers(tmp_path):
    SqliteStore(tmp_path / "x.db").close()
    found = [Reader(tmp_path / "x.db") for _ in range(3)]
    yield found
    for one in found:
        one.session.close()


def test_what_another_process_has_changed_is_followed_not_read(readers):
    one, two, _ = readers
    for step in (one, two):
        step.change(lambda bitmaps: bitmaps.bitmap("x", 1 << 20).acquire())
    for i in range(1, 20):
        for step in readers[:2]:
            step.change(lambda bitmaps: bitmaps.bitmap("x", 1 << 20).acquire())
            assert step.rows_read() == []
        two.change(lambda bitmaps, i=i: bitmaps.bitmap("x", 1 << 20).release(i))
        assert two.rows_read() == []
    assert one.session.bitmaps.bitmap("x", 1 << 20).cursor == 39  # what two has is not seen yet


@pytest.mark.parametrize("seed", range(3))
def test_processes_that_follow_each_other_agree(readers, seed):
    """Runs, gaps, rows that are written anew, bitmaps that come and go, changes undone."""
    rng = random.Random(seed)
    held = {name: set() for name in ("a", "b", "c")}
    size = 9 * 4096
    followed = 0
    for _ in range(400):
        one = rng.choice(readers)
        sequence = one.begin()
        bitmaps = one.session.bitmaps
        name = rng.choice(list(held))
        expected = set(held[name])
        known = bitmaps.known(name)
        bitmap = bitmaps.bitmap(name, size)
        assert known or not expected
        assert len(bitmap) == len(expected)
        probe = rng.randrange(size)
        assert (probe in bitmap) == (probe in expected)
        kind = rng.random()
        with suppress(NetallocError):
            if kind < 0.6:
                expected.add(bitmap.acquire())
            elif kind < 0.8 and expected:
                gone = rng.choice(sorted(expected))
                bitmap.release(gone)
                expected.discard(gone)
            elif kind < 0.9:
                bitmap.reserve(probe)
                expected.add(probe)
            elif kind < 0.98:
                for start, stop in bitmap.acquire_ranges(rng.randrange(1, 3000)):
                    expected.update(range(start, stop))
            else:
                bitmaps.drop(name)
                expected = set()
        followed += not one.rows_read()
        if rng.random() < 0.15:
            one.session.rollback()
        else:
            one.session.write(sequence + 1, "boot", [])
            held[name] = expected
    assert followed > 60

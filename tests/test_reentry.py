"""Calls that come in the middle of a call of the same thread: a clear error, or a right answer.

They come from a probe, from the kernel's part, from the mapping of labels and the text of an
owner, from a `__del__` that the garbage collector runs, and from a signal handler; and go to
the same manager, to another one of the same store, or to the same file by another store.
"""

import faulthandler
import gc
import os
import queue
import random
import signal
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from faults import FaultyBackend
from netalloc.errors import NetallocError, StaleLeaseError, StoreError
from netalloc.manager.host_store import callbacks
from netalloc.manager.manager import NetworkManager
from netalloc.model import ReconcileResult
from netalloc.portmap.watch import Watch, Work
from netalloc.store.memory import MemoryStore
from netalloc.store.sqlite.store import SqliteStore
from test_interrupts import run_in_child

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

DEADLINE = 60  # seconds, of which none is waited for


def refused(error: Exception) -> bool:
    """Whether it says that the call came in the middle of another, and nothing else."""
    if isinstance(error, ExceptionGroup):
        return all(refused(one) for one in error.exceptions)
    return "this thread is in the middle of" in str(error)


@pytest.fixture(autouse=True)
def watchdog() -> Iterator[None]:
    faulthandler.dump_traceback_later(DEADLINE, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


class Host:
    """Three managers: two of one store, and where it is a file a third of another store there."""

    def __init__(self, kind: str, folder: Path, opened: ExitStack) -> None:
        path = folder / "store.db"
        self.inner: Callable[[], Any] | None = None
        self.outcomes: Counter[str] = Counter()

        def store() -> Any:
            if kind == "memory":
                return MemoryStore()
            return opened.enter_context(SqliteStore(path, **callbacks()))

        first = store()
        others = [first, first] if kind == "memory" else [first, first, store()]
        self.managers = [
            opened.enter_context(
                NetworkManager(
                    f"br{i}",
                    network=f"10.0.{i}.1/24",
                    backend=Kernel(self),
                    store=one,
                    probe=self.probe,
                )
            )
            for i, one in enumerate(others)
        ]
        self.manager = self.managers[0]

    def probe(self, port: int, protocol: str, host_ip: object) -> bool:
        self.call()
        return True

    def call(self) -> None:
        """The call in the middle, once."""
        inner, self.inner = self.inner, None
        if inner is None:
            return
        try:
            inner()
            self.outcomes["answered"] += 1
        except (StoreError, ExceptionGroup) as error:
            assert refused(error)
            self.outcomes["refused"] += 1

    def check(self) -> None:
        for manager in self.managers:
            assert manager.check() == []
        held = [one.ip for manager in self.managers for one in manager.interfaces()]
        assert len(held) == len(set(held))
        ports = [
            mapping.host_port
            for manager in self.managers
            for one in manager.interfaces()
            for mapping in one.ports()
        ]
        assert len(ports) == len(set(ports))

    def other_threads_go_on(self) -> None:
        done: list[Any] = []
        thread = threading.Thread(target=lambda: done.append(self.manager.allocate("thread")))
        thread.start()
        thread.join(DEADLINE)
        assert done, "another thread is held up"
        done[0].release()


class Kernel(FaultyBackend):
    def __init__(self, host: Host) -> None:
        super().__init__()
        self.host = host

    def apply(self, add: Any, remove: Any = ()) -> None:
        self.host.call()
        super().apply(add, remove)


class Labels(dict):  # type: ignore[type-arg]
    """Labels that call in the middle of being read."""

    def __init__(self, host: Host) -> None:
        super().__init__(app="shop")
        self.host = host

    def items(self) -> Any:
        self.host.call()
        return super().items()


class Owner(str):
    """An owner whose text calls in the middle of being read."""

    host: Host

    def __str__(self) -> str:
        self.host.call()
        return str.__str__(self)

    def __hash__(self) -> int:
        self.host.call()
        return str.__hash__(self)

    def __eq__(self, other: object) -> bool:
        self.host.call()
        return str.__eq__(self, other)


@pytest.fixture(params=["memory", "file"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Host]:
    with ExitStack() as opened:
        yield Host(request.param, tmp_path, opened)


INNER: dict[str, Callable[[NetworkManager], Any]] = {
    "allocate": lambda m: m.allocate("inner", ports=(80,)),
    "allocate_many": lambda m: m.allocate_many(2, (80,), "inner"),
    "release": lambda m: m.release("web"),
    "reserve": lambda m: m.reserve(m.subnet.address(77), "inner"),
    "find": lambda m: m.find("web"),
    "check": lambda m: m.check(),
    "reconcile": lambda m: m.reconcile(),
    "gc": lambda m: m.gc(["web", "inner"]),
}


def outer(host: Host, how: str) -> None:
    """A call in the middle of which another one comes."""
    if how == "labels":
        host.manager.allocate("web", labels=Labels(host))
    elif how == "owner":
        owner = Owner("web")
        owner.host = host
        host.manager.allocate(owner, key="eth0")
    else:  # the probe comes first, then the kernel: which of the two is set beforehand
        host.manager.allocate("web", ports=(80,))


@pytest.mark.parametrize("how", ["probe", "kernel", "labels", "owner"])
def test_a_call_in_the_middle_of_another(host: Host, how: str) -> None:
    for name, inner in INNER.items():
        for target in host.managers:
            if how == "kernel":
                probe = host.manager._leases.publications.ports.probe
                host.manager._leases.publications.ports.probe = None
            host.inner = lambda: inner(target)  # noqa: B023
            outer(host, how)
            host.inner = None
            if how == "kernel":
                host.manager._leases.publications.ports.probe = probe
            host.check()
            host.other_threads_go_on()
            for manager in host.managers:
                for one in manager.interfaces():
                    one.release()
                if name == "reserve":
                    try:
                        manager.unreserve(manager.subnet.address(77))
                    except NetallocError:
                        pass
    sys.stdout.write(f"from {how}: {dict(host.outcomes)}\n")
    assert sum(host.outcomes.values()) or how == "owner"


class Monitor:
    """Tells of changes of the rules when it is told to."""

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def wait(self) -> bool:
        return self.events.get()

    def stop(self) -> None:
        self.events.put(False)

    def close(self) -> None:
        pass


def test_a_call_from_on_repair(host: Host) -> None:
    """What a watch reports it reports between two changes, so that all calls are answered."""
    host.manager.allocate("web", ports=(80,))
    monitor, reported = Monitor(), threading.Event()
    answers: list[Any] = []

    def on_repair(repairs: ReconcileResult) -> None:
        answers.append(len(repairs.added))
        answers.append(host.manager.allocate("inner", ports=(81,)))
        answers.append(host.manager.reconcile())
        reported.set()

    work = Work(host.manager.reconcile)
    with Watch(lambda: monitor, work, on_repair):  # type: ignore[arg-type, return-value]
        host.manager._leases.mappings.cleanup()
        monitor.events.put(True)
        assert reported.wait(DEADLINE)
    assert answers[0] == 1 and answers[1].owner == "inner" and not answers[2]
    host.check()


class Releasing:
    """Garbage that calls when it is collected."""

    def __init__(self, host: Host, call: Callable[[], Any]) -> None:
        self.host = host
        self.call = call
        self.cycle = self

    def __del__(self) -> None:
        try:
            self.call()
            self.host.outcomes["answered"] += 1
        except StoreError as error:
            assert "in the middle of" in str(error)
            self.host.outcomes["refused"] += 1


def test_calls_from_the_garbage_collector(host: Host) -> None:
    threshold = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            for i in range(30):
                target = host.managers[i % len(host.managers)]
                garbage = lambda: Releasing(host, lambda: target.allocate("x").release())  # noqa: B023, E731
                # Collected in the middle of the change: at once, or when the next objects are made.
                host.inner = garbage if i % 2 else lambda: (garbage(), gc.collect())  # noqa: B023
                garbage()  # and before it
                one = host.manager.allocate("web", ports=(80,), labels={"a": "b"})
                one.allocate_port(100 + i)
                one.release()
        finally:
            gc.set_threshold(*threshold)
    gc.collect()
    host.check()
    host.other_threads_go_on()
    assert host.manager.find("web") == []
    sys.stdout.write(f"from the garbage collector: {dict(host.outcomes)}\n")
    assert host.outcomes["refused"] >= 15


def _signalled(kind: str, folder: Path, rounds: int) -> None:
    with ExitStack() as opened:
        host = Host(kind, folder, opened)
        chance = random.Random(kind)
        inner = list(INNER.values())

        def handler(number: int, frame: object) -> None:
            try:
                chance.choice(inner)(chance.choice(host.managers))
                host.outcomes["answered"] += 1
            except (StoreError, ExceptionGroup) as error:
                assert refused(error), error
                host.outcomes["refused"] += 1
            except NetallocError:
                host.outcomes["answered"] += 1  # reserved already, say

        signal.signal(signal.SIGALRM, handler)
        for _ in range(rounds):
            signal.setitimer(signal.ITIMER_REAL, 10 ** chance.uniform(-5, -2.7))
            one = host.manager.allocate("web", ports=(80,), labels={"a": "b"})
            try:
                one.allocate_port(100)
                one.release()
            except StaleLeaseError:
                pass  # the handler has released it
            signal.setitimer(signal.ITIMER_REAL, 0)
            for manager in host.managers:
                manager.release("inner")
        host.check()
        host.other_threads_go_on()
        assert min(host.outcomes["answered"], host.outcomes["refused"]) > 10, host.outcomes
        os.write(1, f"{kind}: from signal handlers: {dict(host.outcomes)}\n".encode())


@pytest.mark.parametrize(("kind", "rounds"), [("memory", 1500), ("file", 500)])
def test_calls_from_a_signal_handler(kind: str, rounds: int, tmp_path: Path) -> None:
    run_in_child(lambda: _signalled(kind, tmp_path, rounds), DEADLINE)


def test_a_fork_within_a_change_makes_it_in_the_parent_alone(host: Host) -> None:
    children: list[int] = []

    def fork() -> None:
        child = os.fork()
        if child:
            children.append(child)

    me = os.getpid()
    host.inner = fork
    try:
        one = host.manager.allocate("web", ports=(80,))
    except NetallocError:
        os._exit(7 if os.getpid() != me else 1)
    if os.getpid() != me:
        os._exit(2)  # it was made twice
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 7
    assert one.ports()
    host.check()
    host.other_threads_go_on()


def test_a_child_has_no_part_in_managers_in_memory(tmp_path: Path) -> None:
    with NetworkManager("br0", network="10.0.0.1/24", backend="null") as manager:
        one = manager.allocate("web", ports=(80,))

        def work() -> None:
            for call in (manager.allocate, manager.interfaces, one.release):
                with pytest.raises(NetallocError, match=f"belongs to process {os.getppid()}"):
                    call()
            manager.close()  # gives back nothing of the parent's

        run_in_child(work, DEADLINE)
        assert manager.interfaces() == [one] and manager.check() == []


def test_forks_while_threads_change(host: Host) -> None:
    """A fork waits for their changes, whichever stores they are at, and they for the fork."""
    stop = threading.Event()

    def change(manager: NetworkManager) -> None:
        while not stop.is_set():
            manager.allocate("thread", ports=(80,)).release()

    threads = [threading.Thread(target=change, args=(one,)) for one in host.managers]
    for thread in threads:
        thread.start()
    try:
        for _ in range(40):
            child = os.fork()
            if not child:
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join(DEADLINE)
    host.check()

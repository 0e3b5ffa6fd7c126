"""Interrupts at every place of a call: nothing given twice, nothing half done, none held up."""

import ast
import faulthandler
import os
import queue
import random
import signal
import sys
import threading
import traceback
from _thread import interrupt_main
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import netalloc
from faults import FaultyBackend
from interrupts import Interrupted, Knife
from lab import Private
from netalloc.errors import (
    CommandError,
    ExhaustedError,
    InUseError,
    InvalidValueError,
    StoreError,
)
from netalloc.host.links import Links
from netalloc.ipam.check import check
from netalloc.manager.manager import NetworkManager
from netalloc.model import PortRequest
from netalloc.store.memory import MemoryStore
from netalloc.store.records import Label, Reservation
from netalloc.store.sqlite.store import SqliteStore

PATIENCE = 20  # seconds after which another thread counts as held up
PLACES = 36  # of each operation in the normal run; all of them in the long one
ERRORS = (Interrupted, CommandError, InUseError, StoreError, ExhaustedError)


class Other:
    """Another thread, that has to be able to go on."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                self._done.put((work(), None))
            except BaseException as error:
                self._done.put((None, error))

    def __call__(self, work: Callable[[], Any]) -> Any:
        self._work.put(work)
        try:
            result, error = self._done.get(timeout=PATIENCE)
        except queue.Empty:
            faulthandler.dump_traceback()
            pytest.fail("another thread is held up")
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        self._work.put(None)


class World:
    """A manager of a small network, in memory or over a file, and a kernel that is a dict."""

    def __init__(self, kind: str, folder: Path, **options: Any) -> None:
        self.kind = kind
        self.path = folder / "store.db" if kind == "file" else None
        self.backend = FaultyBackend()
        self.options = {
            "network": "10.0.0.1/26",
            "backend": self.backend,
            "store": self.path,
            "ports": range(8000, 8100),
        } | options
        self.manager = self.open()
        self.other = Other()
        self.lost = False

    def open(self) -> NetworkManager:
        return NetworkManager("br0", **self.options)

    def lose(self) -> None:
        """Another program takes the mappings away."""
        self.backend.cleanup()
        self.lost = True

    def held(self, owner: str) -> list[tuple[Any, ...]]:
        """What an owner holds: ports and labels, an entry for each lease."""
        return [
            (len(one.ports()), tuple(sorted(self.manager._leases.labels(one._lease).items())))
            for one in self.manager.find(owner)
        ]

    def reserved(self) -> list[str | None]:
        leases = self.manager._leases
        return [r.owner for r in leases.read(lambda tx: tx.table(Reservation).all())]

    def problems(self) -> list[str]:
        """What check() finds in the records and the kernel; the file itself is looked at later."""
        leases = self.manager._leases
        return leases.read(
            lambda tx: [*check(tx), *leases.mappings.differences(leases.publications.desired(tx))]
        )

    def sound(self) -> None:
        """Another thread goes on, and nothing is wrong; whatever was held is released."""

        def go_on() -> None:
            lease = self.manager.allocate("other", ports=(80,))
            assert self.problems() == []
            lease.release()
            assert self.problems() == []
            addresses = [one.ip for one in self.manager.interfaces()]
            assert len(addresses) == len(set(addresses))

        self.other(go_on)

    def clean(self) -> None:
        def release() -> None:
            for one in self.manager.interfaces():
                one.release()
            for owner in self.reserved():
                assert owner is not None
                self.manager.unreserve(owner.partition(" ")[2])

        self.backend.refuse, self.backend.stuck = set(), set()
        self.other(release)

    def close(self) -> None:
        self.manager.close()
        self.other.close()


@pytest.fixture(params=["memory", "file"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    made = World(request.param, tmp_path)
    yield made
    made.close()


# An operation: what it needs, what it does, and whether that was done, wholly or not at all.
Operation = tuple[Callable[[World], Any], Callable[[World, Any], Any], Callable[[World, Any], None]]
TWO = (80, PortRequest(53, "udp"))
LABELS = {"app": "shop", "tier": "web"}
OF_TWO = (2, tuple(sorted(LABELS.items())))


def _nothing(world: World) -> None:
    pass


def _either(found: Any, *allowed: Any) -> None:
    assert found in allowed, f"half done: {found}"


def _leased(world: World) -> Any:
    return world.manager.allocate("web", ports=TWO, labels=LABELS)


def _leased_twice(world: World) -> Any:
    return world.manager.allocate_many(2, TWO, "web", labels=LABELS)


def _doomed(world: World) -> None:
    _leased_twice(world)
    world.manager.gc([], grace=0)


def _reserved(world: World) -> None:
    world.manager.reserve("10.0.0.9", "db 10.0.0.9")


def _refusing(world: World) -> None:
    world.backend.refuse = {53}


OPERATIONS: dict[str, Operation] = {
    "allocate": (
        _nothing,
        lambda w, _: w.manager.allocate("web", ports=TWO, labels=LABELS),
        lambda w, _: _either(w.held("web"), [], [OF_TWO]),
    ),
    "allocate again by key": (
        lambda w: w.manager.allocate("web", key="eth0"),
        lambda w, _: w.manager.allocate("web", key="eth0"),
        lambda w, _: _either(w.held("web"), [(0, ())]),
    ),
    "allocate_many": (
        _nothing,
        lambda w, _: w.manager.allocate_many(3, TWO, "web", labels=LABELS),
        lambda w, _: _either(w.held("web"), [], [OF_TWO] * 3),
    ),
    "release": (
        _leased,
        lambda w, one: one.release(),
        lambda w, _: _either(w.held("web"), [], [OF_TWO]),
    ),
    "release an owner": (
        _leased_twice,
        lambda w, _: w.manager.release("web"),
        lambda w, _: _either(w.held("web"), [], [OF_TWO] * 2),
    ),
    "publish": (
        lambda w: w.manager.allocate("web"),
        lambda w, one: one.publish(TWO),
        lambda w, _: _either(w.held("web"), [(0, ())], [(2, ())]),
    ),
    "release_port": (
        lambda w: w.manager.allocate("web", ports=TWO),
        lambda w, one: one.release_port(one.ports()[0].host_port, one.ports()[0].protocol),
        lambda w, _: _either(w.held("web"), [(1, ())], [(2, ())]),
    ),
    "reserve": (
        _nothing,
        lambda w, _: w.manager.reserve("10.0.0.9", "db 10.0.0.9"),
        lambda w, _: _either(w.reserved(), [], ["db 10.0.0.9"]),
    ),
    "unreserve": (
        _reserved,
        lambda w, _: w.manager.unreserve("10.0.0.9"),
        lambda w, _: _either(w.reserved(), [], ["db 10.0.0.9"]),
    ),
    "gc, the first look": (
        _leased_twice,
        lambda w, _: w.manager.gc([], grace=0),
        lambda w, _: _either(w.held("web"), [OF_TWO] * 2),
    ),
    "gc, the second look": (
        _doomed,
        lambda w, _: w.manager.gc([], grace=0),
        lambda w, _: _either(w.held("web"), [], [OF_TWO] * 2),
    ),
    "find": (
        _leased,
        lambda w, _: w.manager.find("web", ("app", "shop")),
        lambda w, _: _either(w.held("web"), [OF_TWO]),
    ),
    "reconcile": (
        lambda w: (_leased(w), w.lose()),
        lambda w, _: w.manager.reconcile(),
        lambda w, _: _either(w.held("web"), [OF_TWO]),
    ),
    "check": (
        _leased,
        lambda w, _: w.manager.check(),
        lambda w, _: _either(w.held("web"), [OF_TWO]),
    ),
    "a port that is held": (
        lambda w: w.manager.allocate("db", ports=(PortRequest(80, host_port=8050),)),
        lambda w, _: w.manager.allocate_many(2, (90, PortRequest(80, host_port=8050)), "web"),
        lambda w, _: _either(w.held("web"), []),
    ),
    "a kernel that refuses": (
        _refusing,
        lambda w, _: w.manager.allocate("web", ports=(90, PortRequest(80, host_port=53))),
        lambda w, _: _either(w.held("web"), []),
    ),
    "too many": (
        _nothing,
        lambda w, _: w.manager.allocate_many(100, (90,), "web"),
        lambda w, _: _either(w.held("web"), []),
    ),
}


def places_of(world: World, operation: Operation) -> int:
    """How many places an operation has, where it runs through."""
    prepare, do, _ = operation
    for _ in range(2):  # the second time nothing is opened or filled for the first time
        context = prepare(world)
        knife = Knife(1 << 40)
        try:
            knife.run(lambda: do(world, context))  # noqa: B023
        except ERRORS:
            pass
        world.clean()
    return knife.seen


def cut(world: World, operation: Operation, knife: Knife) -> None:
    """Run an operation, cut it, and see what is left of it."""
    prepare, do, done = operation
    context = prepare(world)
    try:
        knife.run(lambda: do(world, context))
    except ERRORS:
        pass
    try:
        world.backend.refuse = set()
        if world.lost:
            world.other(world.manager.reconcile)
            world.lost = False
        if knife.again is None and len(knife.cuts) < 2:
            assert world.other(world.problems) == []
        world.sound()
        world.other(lambda: done(world, context))
        world.clean()
    except BaseException as error:
        raise AssertionError(f"cut at {', then '.join(knife.cuts)}: {error}") from error


def spread(n: int, at_most: int, seed: str) -> list[int]:
    """All of n places, or some of each stretch of them."""
    if n <= at_most:
        return list(range(n))
    chance = random.Random(seed)
    return sorted(chance.sample(range(n), at_most))


def cut_everywhere(world: World, name: str, at_most: int) -> None:
    operation = OPERATIONS[name]
    n = places_of(world, operation)
    chosen = spread(n, at_most, name)
    for place in chosen:
        cut(world, operation, Knife(place))
    for place in spread(n, at_most, f"{name} twice"):  # and once more while that is undone
        cut(world, operation, Knife(place, again=random.Random(place).randrange(60)))
    assert world.manager.check() == []
    sys.stdout.write(f"{world.kind} {name}: {n} places, {2 * len(chosen)} cuts, none bad\n")


# Of what an interrupt in a finaliser ends Python itself says so, and goes on.
FINALISERS = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@FINALISERS
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_interrupt_leaves_nothing_half_done(world: World, name: str) -> None:
    cut_everywhere(world, name, PLACES)


@FINALISERS
@pytest.mark.soak
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_interrupt_anywhere_leaves_nothing_half_done(world: World, name: str) -> None:
    cut_everywhere(world, name, 1 << 40)


# Where locks are taken and given back; see netalloc/locks.py.
_PACKAGE = Path(netalloc.__file__).parent
CAREFUL = sorted(
    path
    for pattern in ("locks.py", "manager/c*.py", "manager/queue.py", "store/**/*.py", "ports.py")
    for path in _PACKAGE.glob(pattern)
    if path.name != "salvage.py"  # reads a copy, and takes no lock
)


def _loops(node: ast.AST) -> Iterator[int]:
    """Lines with a loop, or a comprehension, that is not in a function of its own."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.Lambda | ast.GeneratorExp):
            continue
        if isinstance(child, ast.For | ast.While | ast.ListComp | ast.SetComp | ast.DictComp):
            yield child.lineno
        yield from _loops(child)


@pytest.mark.parametrize("path", CAREFUL, ids=lambda path: str(path.relative_to(_PACKAGE)))
def test_no_loop_stands_in_a_try_that_gives_a_lock_back(path: Path) -> None:
    """Python 3.13.0 leaves the jump backward of some loops out of the `try` around them."""
    wrong = [
        f"{path.name}:{line}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.With) or (isinstance(node, ast.Try) and node.finalbody)
        for part in node.body
        for line in ([part.lineno] if isinstance(part, ast.For | ast.While) else _loops(part))
    ]
    assert wrong == []


class Timeout(Exception):
    """What a signal handler raises that is an Exception, as for a time limit."""


def test_what_is_no_key_of_a_dict_is_not_half_entered() -> None:
    store = MemoryStore()

    def enter(tx: Any) -> None:
        tx.table(Label).add((Label(1, 2, "good", "value"), Label(1, 2, "bad", ["value"])))  # type: ignore[arg-type]

    with pytest.raises(TypeError):
        store.run("enter", enter)
    assert store.view(lambda tx: tx.table(Label).all()) == []
    good = Label(1, 2, "bad", "text")
    store.run("enter", lambda tx: tx.table(Label).add((good,)))
    assert store.view(lambda tx: tx.table(Label).where("network", equal=(1,))) == [good]


@pytest.mark.parametrize("name", ["allocate", "allocate_many", "publish", "reserve"])
def test_an_exception_of_a_signal_handler_leaves_nothing_half_done(world: World, name: str) -> None:
    prepare, do, done = OPERATIONS[name]
    n = places_of(world, OPERATIONS[name])
    for place in spread(n, PLACES, f"{name} exception"):
        context = prepare(world)
        knife = Knife(place, error=Timeout)
        try:
            knife.run(lambda: do(world, context))  # noqa: B023
            assert not knife.cuts, "the exception is lost"
        except Timeout:
            pass
        except InvalidValueError as error:  # while a value of the caller's was read
            assert isinstance(error.__cause__, Timeout)
        assert world.other(world.problems) == []
        world.sound()
        world.other(lambda: done(world, context))  # noqa: B023
        world.clean()


@pytest.mark.parametrize("name", ["allocate", "release", "publish"])
def test_an_interrupt_beside_a_commit_that_fails(tmp_path: Path, name: str) -> None:
    world = World("file", tmp_path)
    prepare, do, done = OPERATIONS[name]
    n = places_of(world, OPERATIONS[name])
    for place in spread(n, PLACES, f"{name} commit"):
        context = prepare(world)
        writer = world.manager._leases.committer.store._file.writer()

        def fail(done: list[Any]) -> None:
            raise StoreError("no room left")

        writer.commit = fail  # type: ignore[method-assign]
        try:
            Knife(place).run(lambda: do(world, context))  # noqa: B023
        except (*ERRORS, Exception):
            pass
        finally:
            del writer.commit
        world.sound()
        world.other(lambda: done(world, context))  # noqa: B023
        world.clean()
    world.close()


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_an_interrupted_opening_or_closing_can_be_done_again(kind: str, tmp_path: Path) -> None:
    world = World(kind, tmp_path, backend="null")
    world.manager.close()
    knife = Knife(1 << 40)
    knife.run(lambda: world.open().close())
    for place in spread(knife.seen, 6 * PLACES, kind):
        manager: NetworkManager | None = None

        def both() -> None:
            nonlocal manager
            manager = world.open()
            manager.close()

        knife = Knife(place)
        try:
            knife.run(both)
            assert not knife.cuts, "the interrupt is lost"
            continue
        except Interrupted:
            pass
        if manager is not None:
            manager.close()

        def again() -> None:
            with world.open() as manager:
                manager.allocate("web", ports=TWO).release()
                assert manager.check() == []

        try:
            world.other(again)
        except BaseException as error:
            raise AssertionError(f"cut at {knife.cuts[0]}: {error}") from error
    world.other.close()
    sys.stdout.write(f"{kind}: opened and closed, cut at {6 * PLACES} places, none bad\n")


def _signalled(kind: str, folder: Path, rounds: int) -> None:
    """Operations under signals that come at any time, in a process of its own."""
    world = World(kind, folder)
    chance = random.Random(kind)
    cuts = 0

    def handler(number: int, frame: FrameType | None) -> None:
        # Where this looks for longer than the timer's interval, signals come within signals.
        while frame is not None and frame.f_code is not handler.__code__:
            if "/netalloc/" in frame.f_code.co_filename:
                raise Interrupted
            frame = frame.f_back  # none of ours is at work: it came too late

    signal.signal(signal.SIGALRM, handler)
    operations = list(OPERATIONS.values())
    for prepare, do, _ in operations:
        # What is imported at first use is there: on Python 3.10 an import that is interrupted
        # leaves half a module behind, whosever it is.
        context = prepare(world)
        with suppress(*ERRORS):
            do(world, context)
        world.clean()
    for round_ in range(rounds):
        prepare, do, done = operations[round_ % len(operations)]
        context = prepare(world)
        try:
            # Again and again, so that some come while it is undone.
            signal.setitimer(signal.ITIMER_REAL, 10 ** chance.uniform(-5, -2.7), 1e-4)
            do(world, context)
        except Interrupted:
            cuts += 1
        except ERRORS:
            pass
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        world.backend.refuse = set()
        if world.lost:
            world.other(world.manager.reconcile)
            world.lost = False
        world.sound()
        world.other(lambda: done(world, context))  # noqa: B023
        world.clean()
    assert world.manager.check() == []
    os.write(1, f"{kind}: {rounds} rounds under signals, {cuts} cut, none bad\n".encode())


@pytest.mark.parametrize(("kind", "rounds"), [("memory", 1200), ("file", 700)])
def test_signals_at_any_time(kind: str, rounds: int, tmp_path: Path) -> None:
    run_in_child(lambda: _signalled(kind, tmp_path, rounds))


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["memory", "file"])
def test_many_signals_at_any_time(kind: str, tmp_path: Path) -> None:
    run_in_child(lambda: _signalled(kind, tmp_path, 30_000), 600)


def _survey_whose_end_fails(folder: Path) -> None:
    def handler(number: int, frame: FrameType | None) -> None:
        raise Interrupted

    signal.signal(signal.SIGUSR1, handler)
    store = SqliteStore(folder / "store.db")
    end = store._file.end_survey
    # In C, so that Python looks for signals only where the error reaches what undoes.
    failing = map(interrupt_main, [signal.SIGUSR1, "no signal"])
    store._file.end_survey = partial(deque, failing)  # type: ignore[method-assign]
    with suppress(Interrupted, TypeError):
        store.survey(lambda _: None)
    with suppress(Interrupted):
        store._file.end_survey = end  # type: ignore[method-assign]
    end()
    assert store.survey(lambda _: "seen") == "seen"


def test_a_survey_whose_end_fails_under_an_interrupt_has_ended(tmp_path: Path) -> None:
    run_in_child(lambda: _survey_whose_end_fails(tmp_path))


def run_in_child(work: Callable[[], None], seconds: int = 100) -> None:
    """Run it in a forked child that dies where it hangs."""

    def give_up() -> None:
        faulthandler.dump_traceback()
        os._exit(3)

    child = os.fork()
    if not child:
        status = 1
        try:
            # faulthandler's own timer waits, after a fork, for a thread that is the parent's.
            timer = threading.Timer(seconds, give_up)
            timer.daemon = True
            timer.start()
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.root
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # sockets that
# were being made are closed when they are collected
@pytest.mark.parametrize("kind", ["memory", "file"])
def test_an_interrupt_leaves_the_kernel_in_agreement(kind: str, tmp_path: Path) -> None:
    """The same with nftables, at some of the places."""
    with Private():
        with Links() as links:
            links.create_bridge("br0", "10.0.0.1/26")
        world = World(kind, tmp_path, backend="nftables", probe=lambda *_: True)
        try:
            for name in ("allocate", "release", "publish"):
                operation = OPERATIONS[name]
                for place in spread(places_of(world, operation), 15, name):
                    cut(world, operation, Knife(place))
                    cut(world, operation, Knife(place, again=place % 50))
            assert world.manager.check() == []
            world.manager.reconcile()  # and nothing is left owed to the flow table
            owed = world.manager._leases.flows._owed
            assert not any(os.pread(owed._file(), 4096, 0))
        finally:
            world.close()

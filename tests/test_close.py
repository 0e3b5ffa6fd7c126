"""Closing while other threads call: it waits for them, and later calls are refused."""

import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from faults import FaultyBackend
from netalloc.errors import ClosedError, StoreError
from netalloc.manager.manager import NetworkManager
from netalloc.manager.undo import Teardown

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

ROUNDS = {"memory": 200, "file": 60}
PATIENCE = 30  # seconds


class Kernel(FaultyBackend):
    """A kernel that tells when it is used after it was given back."""

    def __init__(self, before: "FaultyBackend | None" = None) -> None:
        super().__init__()
        if before is not None:  # the mappings of a store in a file stay
            self._present = before._present
        self.closed = False
        self.late: list[str] = []

    def apply(self, add, remove=()) -> None:
        if self.closed:
            self.late.append("apply")
        super().apply(add, remove)

    def close(self) -> None:
        self.closed = True


def opened(kind: str, folder: Path, backend: FaultyBackend) -> NetworkManager:
    store = folder / "store.db" if kind == "file" else None
    return NetworkManager("br0", network="10.0.0.1/24", backend=backend, store=store)


@pytest.mark.parametrize("kind", ROUNDS)
def test_close_waits_for_calls_and_refuses_later_ones(kind: str, tmp_path: Path) -> None:
    calls = refused = 0
    backend = Kernel()
    for round_ in range(ROUNDS[kind]):
        backend = Kernel(backend)
        manager = opened(kind, tmp_path, backend)
        started = threading.Barrier(4)
        outcomes: list[object] = []

        def call(
            k: int,
            manager: NetworkManager = manager,
            started: threading.Barrier = started,
            outcomes: list[object] = outcomes,
        ) -> None:
            started.wait(PATIENCE)
            try:
                while True:
                    one = manager.allocate(f"caller{k}", ports=(80,))
                    outcomes.append(one)
                    manager.find(f"caller{k}")
                    one.release()
            except BaseException as raised:
                outcomes.append(raised)

        threads = [threading.Thread(target=call, args=(k,)) for k in range(3)]
        for thread in threads:
            thread.start()
        started.wait(PATIENCE)
        if round_ % 3:  # sometimes at once, sometimes when they are at it
            while len(outcomes) < round_ % 7:
                time.sleep(0)
        closers = [threading.Thread(target=manager.close) for _ in range(2)]
        for thread in (*closers, *threads):
            if thread in closers:
                thread.start()
        for thread in (*closers, *threads):
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a call, or close, hangs"
        errors = [one for one in outcomes if isinstance(one, BaseException)]
        assert [type(error) for error in errors] == [ClosedError] * 3, errors
        assert backend.late == []
        calls += len(outcomes) - 3
        refused += 3
        if kind == "file":
            backend = Kernel(backend)
            with opened(kind, tmp_path, backend) as again:
                assert again.check() == []
                for one in again.interfaces():
                    one.release()
                assert again.check() == []
        else:
            assert backend.mappings() == []
    sys.stdout.write(f"{kind}: {ROUNDS[kind]} closings, {calls} calls made, {refused} refused\n")


@pytest.mark.parametrize("kind", ROUNDS)
def test_close_within_a_change_is_refused(kind: str, tmp_path: Path) -> None:
    seen: list[BaseException] = []

    class Closing(FaultyBackend):
        def apply(self, add, remove=()) -> None:
            try:
                manager.close()
            except StoreError as error:
                seen.append(error)
            super().apply(add, remove)

    manager = opened(kind, tmp_path, Closing())
    one = manager.allocate("web", ports=(80,))
    assert "in the middle of" in str(seen[0])
    assert manager.find("web") == [one]  # and it is open still
    manager.close()
    manager.close()
    with pytest.raises(ClosedError):
        manager.allocate("late")


@pytest.mark.parametrize("kind", ROUNDS)
def test_a_close_that_is_interrupted_may_be_called_again(kind: str, tmp_path: Path) -> None:
    begun, go = threading.Event(), threading.Event()

    class Slow(Kernel):
        def apply(self, add, remove=()) -> None:
            begun.set()
            assert go.wait(PATIENCE)
            super().apply(add, remove)

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    backend = Slow()
    manager = opened(kind, tmp_path, backend)
    caller = threading.Thread(target=manager.allocate, args=("web",), kwargs={"ports": (80,)})
    caller.start()
    assert begun.wait(PATIENCE)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            manager.close()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not backend.closed
    with pytest.raises(ClosedError):
        manager.allocate("late")
    go.set()
    manager.close()
    caller.join(PATIENCE)
    assert backend.closed and backend.late == []


class Steps:
    """Steps of a teardown that note when they are taken, some of which raise at first."""

    def __init__(self, *raised: BaseException | None) -> None:
        self.taken: list[int] = []
        self._raised = list(raised)
        self.teardown = Teardown()
        for number in range(len(raised)):
            self.teardown.push(partial(self._step, number))

    def _step(self, number: int) -> None:
        self.taken.append(number)
        error, self._raised[number] = self._raised[number], None
        if error is not None:
            raise error


def test_a_teardown_goes_on_past_what_is_cut_off_and_takes_it_again() -> None:
    steps = Steps(None, KeyboardInterrupt(), None)
    with pytest.raises(KeyboardInterrupt):
        steps.teardown.close()
    assert steps.taken == [2, 1, 0]
    steps.teardown.close()
    steps.teardown.close()
    assert steps.taken == [2, 1, 0, 1]


def test_a_teardown_goes_on_past_failures_and_reports_them() -> None:
    steps = Steps(StoreError("one"), None, StoreError("two"))
    with pytest.raises(ExceptionGroup) as caught:
        steps.teardown.close()
    assert [str(error) for error in caught.value.exceptions] == ["two", "one"]
    steps.teardown.close()
    assert steps.taken == [2, 1, 0, 2, 0]


def test_a_store_that_did_not_close_in_time_is_closed_by_the_next_call(tmp_path: Path) -> None:
    manager = opened("file", tmp_path, FaultyBackend())
    store = manager._leases.committer.store
    store.timeout = 0.01
    begun, go = threading.Event(), threading.Event()

    def work(tx: object) -> None:
        begun.set()
        assert go.wait(PATIENCE)

    caller = threading.Thread(target=store.view, args=(work,))
    caller.start()
    assert begun.wait(PATIENCE)
    with pytest.raises(StoreError, match="waited"):
        manager.close()
    go.set()
    caller.join(PATIENCE)
    store.timeout = PATIENCE
    manager.close()
    assert id(store) not in store._file.users


@pytest.mark.parametrize("kind", ROUNDS)
def test_the_step_of_a_close_that_was_interrupted_is_taken_by_the_next(
    kind: str, tmp_path: Path
) -> None:
    class Interrupted(Kernel):
        def close(self) -> None:
            if not self.late:
                self.late.append("interrupted")
                raise KeyboardInterrupt
            super().close()

    backend = Interrupted()
    manager = opened(kind, tmp_path, backend)
    with pytest.raises(KeyboardInterrupt):
        manager.close()
    assert not backend.closed
    manager.close()
    assert backend.closed

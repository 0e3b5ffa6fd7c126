"""Looking at all there is, and what comes of it, keeps out of the way of other calls."""

import os
import sys
import threading

import pytest

from faults import FaultyBackend
from netalloc.errors import NetallocError, StoreError
from netalloc.ipam import ended, gc, reboot
from netalloc.manager import upkeep
from netalloc.manager.host_store import callbacks
from netalloc.manager.manager import NetworkManager
from netalloc.manager.repair import repair
from netalloc.store.records import TABLES, GcCandidate, Lease, Reservation
from netalloc.store.sqlite.store import SqliteStore

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

PATIENCE = 30
KINDS = ("memory", "file")


@pytest.fixture(params=KINDS)
def manager(request, tmp_path):
    with opened(request.param, tmp_path) as manager:
        yield manager


def opened(kind, folder, backend="null"):
    store = None if kind == "memory" else folder / "store.db"
    return NetworkManager("br0", network="10.0.0.1/16", backend=backend, store=store)


def held(tx):
    return [lease.owner for lease in tx.table(Lease).all()]


def test_a_survey_is_of_one_moment_and_holds_up_neither_reading_nor_changing(manager):
    manager.allocate("before")
    service = manager._leases
    (lease,) = service.find("before", None)
    begun, go = threading.Event(), threading.Event()
    seen = []

    def look(tx):
        seen.append(held(tx))
        begun.set()
        assert go.wait(PATIENCE)
        seen.append([lease.owner for lease in tx.table(Lease).where("network", equal=(1,))])
        return tx.table(Lease).get(1, lease.ordinal)

    def survey():
        seen.append(service.survey(look))

    thread = threading.Thread(target=survey)
    thread.start()
    assert begun.wait(PATIENCE)
    manager.allocate("meanwhile")
    assert [one.owner for one in manager.find()] == ["before", "meanwhile"]
    manager.release("before")
    go.set()
    thread.join(PATIENCE)
    assert seen[:2] == [["before"], ["before"]]
    assert seen[2] == lease
    assert service.survey(held) == ["meanwhile"]


def test_a_survey_sees_all_that_a_view_sees(manager):
    manager.allocate_many(3, ports=(80,), owner="x", labels={"a": "b"})
    manager.reserve("10.0.9.9", "kept")
    store = manager._leases.committer.store

    def all_of_it(tx):
        names = sorted(tx.names(""))
        sizes = dict.fromkeys(names, 65536)
        return (
            {kind: sorted(tx.table(kind).all(), key=repr) for kind in TABLES},
            names,
            [len(tx.bitmap(name, size)) for name, size in sizes.items()],
            tx.table(Reservation).where("network", "owner", equal=(1, "kept")),
            tx.table(Reservation).where("network", equal=(2,)),
            tx.known("nothing"),
            tx.table(Lease).get(1, 0),
        )

    assert store.survey(all_of_it) == store.view(all_of_it)
    assert manager.check() == []


def test_within_another_call_of_the_thread_there_is_no_survey_of_a_file(tmp_path):
    with opened("file", tmp_path) as manager:
        store = manager._leases.committer.store
        for outer in (store.view, lambda work: store.run("x", work), store.survey):
            with pytest.raises(StoreError, match="in the middle"):
                outer(lambda tx: store.survey(held))
        with pytest.raises(StoreError, match="in the middle"):
            store.survey(lambda tx: store.close())
        assert store.survey(held) == []


class Survey:
    """A survey of a store in another thread, that goes on when it is let."""

    def __init__(self, store):
        self._begun, self._go, self._found = threading.Event(), threading.Event(), []
        self._store = store
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._begun.wait(PATIENCE)

    def _run(self):
        self._found.append(self._store.survey(self._look))

    def _look(self, tx):
        self._begun.set()
        assert self._go.wait(PATIENCE)
        return held(tx)

    def go_on(self):
        self._go.set()

    def found(self):
        self._thread.join(PATIENCE)
        return self._found


def test_closing_and_repairing_wait_for_a_survey(tmp_path):
    manager = opened("file", tmp_path)
    store = manager._leases.committer.store
    survey = Survey(store)
    with pytest.raises(StoreError, match="waited"):
        repair(store.path, timeout=0.01)
    survey.go_on()
    manager.close()
    assert survey.found() == [[]]


def test_a_fork_waits_for_a_survey_and_both_sides_go_on(tmp_path):
    with opened("file", tmp_path) as manager:
        manager.allocate("x")
        store = manager._leases.committer.store
        survey = Survey(store)
        threading.Timer(0.05, survey.go_on).start()
        child = os.fork()
        if not child:
            os._exit(0 if store.survey(held) == ["x"] and manager.check() == [] else 1)
        assert survey.found() == [["x"]]
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert manager.check() == []


def test_gc_spares_what_came_between_its_look_and_its_end(manager, monkeypatch):
    service = manager._leases
    kept = manager.allocate("asks again", key="k")
    reused = manager.allocate("released")
    gone = manager.allocate("gone")
    assert manager.gc((), grace=0) == []
    survey = service.survey

    def then(view):
        found = survey(view)
        manager.allocate("asks again", key="k")
        reused.release()
        manager.allocate("another", ip=str(reused.address.ip))
        return found

    monkeypatch.setattr(service, "survey", then)
    assert manager.gc((), grace=0) == [gone.address.ip]
    monkeypatch.undo()
    assert sorted(one.owner for one in manager.interfaces()) == ["another", "asks again"]
    assert kept in manager.interfaces()
    assert manager.check() == []


def test_gc_notes_nothing_of_what_has_ended_since_its_look(manager, monkeypatch):
    service, lease = manager._leases, manager.allocate("x")
    survey = service.survey

    def then(view):
        found = survey(view)
        lease.release()
        return found

    monkeypatch.setattr(service, "survey", then)
    assert manager.gc((), grace=0) == []
    monkeypatch.undo()
    assert service.read(lambda tx: tx.table(GcCandidate).all()) == []
    assert manager.check() == []


def test_two_gcs_at_a_time_end_each_lease_once(manager, monkeypatch):
    service = manager._leases
    manager.allocate_many(5, owner="x")
    manager.gc((), grace=0)
    survey, ended = service.survey, []

    def then(view):
        found = survey(view)
        monkeypatch.undo()
        ended.append(manager.gc((), grace=0))
        return found

    monkeypatch.setattr(service, "survey", then)
    assert manager.gc((), grace=0) == []
    assert len(ended[0]) == 5
    assert manager.interfaces() == []


@pytest.mark.parametrize("kind", KINDS)
def test_gc_ends_leases_in_parts_and_goes_on_past_what_fails(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(upkeep, "_ENDED", 3)
    monkeypatch.setattr(upkeep, "_NOTED", 2)
    backend = FaultyBackend()
    with opened(kind, tmp_path, backend) as manager:
        made = manager.allocate_many(10, ports=(80,), owner="x")
        changes = []
        run = manager._leases.run
        monkeypatch.setattr(
            manager._leases, "run", lambda what, *rest: changes.append(what) or run(what, *rest)
        )
        manager.gc((), grace=0)
        assert changes == ["gc"] * 5
        changes.clear()
        backend.stuck = {made[4].ports()[0].host_port}
        with pytest.raises((ExceptionGroup, NetallocError)):
            manager.gc((), grace=0)
        assert [one.address for one in manager.interfaces()] == [made[4].address]
        backend.stuck = set()
        assert manager.gc((), grace=0) == [made[4].address.ip]
        assert manager.check() == []


def test_the_end_of_a_boot_remembers_as_many_as_the_history_has_room_for(tmp_path, monkeypatch):
    for module in (ended, reboot):
        monkeypatch.setattr(module, "HISTORY", 5)
    with opened("file", tmp_path) as manager:
        manager.allocate_many(20, ports=(80,), owner="x", labels={"a": "b"})
        manager.reserve("10.0.9.9", "kept")
        manager.gc((), grace=0)
    with SqliteStore(tmp_path / "store.db", boot="another", **callbacks()) as store:
        left = store.view(lambda tx: {kind.__name__: len(tx.table(kind).all()) for kind in TABLES})
        assert {kind: number for kind, number in left.items() if number} == {
            "Network": 1,
            "Reservation": 1,
            "EndedLease": 5,
        }
    with NetworkManager.open("br0", SqliteStore(tmp_path / "store.db", boot="another")) as manager:
        assert manager.check() == []


def test_more_leases_that_end_at_once_than_are_remembered(manager, monkeypatch):
    monkeypatch.setattr(ended, "HISTORY", 3)
    manager.allocate_many(8, owner="x")
    manager.release("x")
    past = manager._leases.read(lambda tx: tx.table(ended.EndedLease).all())
    assert sorted(one.number for one in past) == [6, 7, 8]
    manager.allocate("y").release()
    past = manager._leases.read(lambda tx: tx.table(ended.EndedLease).all())
    assert sorted(one.number for one in past) == [7, 8, 9]


def test_every_part_of_a_look_is_looked_at_again(manager):
    """What is noted is noted once, and cleared only as it was noted."""
    manager.allocate("x")
    run = manager._leases.run
    (lease,) = manager._leases.find("x", None)
    key = 1, lease.ordinal, lease.generation
    fresh = [GcCandidate(*key, 5)]
    for _ in range(2):
        run("gc", lambda made: gc.note(made.tx, fresh))
    other = [GcCandidate(*key, 6)]
    run("gc", lambda made: gc.clear(made.tx, other))
    assert manager._leases.read(lambda tx: tx.table(GcCandidate).all()) == fresh
    assert run("gc", lambda made: gc.dead(made.tx, other)) == []
    run("gc", lambda made: gc.clear(made.tx, fresh))
    assert manager._leases.read(lambda tx: tx.table(GcCandidate).all()) == []

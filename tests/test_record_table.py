"""The tables of the core that a store in memory is made of, beside a dict that is searched."""

from __future__ import annotations

import copy
import gc
import os
import random
import tracemalloc
import weakref
from typing import Any

import pytest

from netalloc import NetworkManager
from netalloc._alloc import JournaledBitmap, RecordMaker, RecordTable
from netalloc.errors import NetallocError, StoreError
from netalloc.store.records import TABLES, Cooldown, EndedLease, Lease, Publication

Journal = list[tuple[Any, ...]]


def table_of(kind: type[Any]) -> tuple[RecordTable[Any], Journal]:
    journal: Journal = []
    key, indexes, descending = TABLES[kind]
    return RecordTable(kind, key, indexes, journal, descending), journal


def undo(journal: Journal, keep: int = 0) -> None:
    while len(journal) > keep:
        journal[-1][0].restore(journal[-1])
        del journal[-1]


class Model:
    """All records in the order in which they came."""

    def __init__(self, kind: type[Any]) -> None:
        self.kind = kind
        self.records: list[Any] = []

    def key(self, record: Any) -> tuple[Any, ...]:
        return tuple(getattr(record, name) for name in TABLES[self.kind].key)

    def get(self, *key: Any) -> Any:
        return next((record for record in self.records if self.key(record) == key), None)

    def where(self, fields: tuple[str, ...], equal: tuple[Any, ...]) -> list[Any]:
        found = [r for r in self.records if tuple(getattr(r, f) for f in fields) == equal]
        timed = [i for i in TABLES[self.kind].indexes if i[-1].endswith("_ns") and i[:-1] == fields]
        return sorted(found, key=lambda r: getattr(r, timed[0][-1])) if timed else found


def some(kind: type[Any], chance: random.Random) -> Any:
    """A record whose values few others have, or many."""
    values: list[Any] = []
    for field in kind._fields:
        if field in ("owner", "key"):
            values.append(chance.choice([None, "a", "b", "c", f"{chance.randrange(30)}"]))
        elif field in ("protocol", "name", "value"):
            values.append(chance.choice(["a", "b", "c", f"{chance.randrange(30)}"]))
        elif field.endswith("_ns"):
            values.append(chance.randrange(50))
        else:
            values.append(chance.randrange(chance.choice([2, 2, 30])))
    return kind(*values)


def compare(table: RecordTable[Any], model: Model, chance: random.Random) -> None:
    shape = TABLES[model.kind]
    assert sorted(table.all(), key=repr) == sorted(model.records, key=repr)
    assert bool(len(table)) == bool(model.records)
    for record in [*model.records[:3], some(model.kind, chance)]:
        assert table.get(*model.key(record)) == model.get(*model.key(record))
        for index in (shape.key, *shape.indexes):
            for n in range(1, len(index) + 1):
                fields = index[:n]
                if fields[-1].endswith("_ns"):
                    continue
                equal = tuple(getattr(record, field) for field in fields)
                wanted, found = model.where(fields, equal), table.where(*fields, equal=equal)
                assert sorted(found, key=repr) == sorted(wanted, key=repr)
                assert len(table.where(*fields, equal=equal, limit=2)) == min(2, len(wanted))
                if any(
                    index[:-1] == fields and index[-1].endswith("_ns") for index in shape.indexes
                ):
                    assert found == wanted
                    assert table.where(*fields, equal=equal, limit=2) == wanted[:2]
        for fields in shape.descending:
            first, last = [getattr(record, field) for field in fields]
            same = [r for r in model.records if getattr(r, fields[0]) == first]
            values = sorted([getattr(r, fields[1]) for r in same], reverse=True)
            at_most = [value for value in values if value <= last]
            for limit in (0, 1, 3, 99):
                found = table.up_to(*fields, equal=(first, last), limit=limit)
                assert [getattr(r, fields[1]) for r in found] == at_most[:limit]
                assert set(found) <= set(same) and len(set(found)) == len(found)
    oldest = sorted(model.records, key=model.key)
    assert table.oldest(3) == oldest[:3]


@pytest.mark.parametrize("kind", TABLES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("seed", range(4))
def test_a_table_is_a_dict_that_is_searched(kind: type[Any], seed: int) -> None:
    """Records that come and go, some of it undone: the same found, and in the same order."""
    chance = random.Random(f"{kind.__name__} {seed}")
    (table, journal), model = table_of(kind), Model(kind)
    for _ in range(120):
        before = list(model.records)
        for _ in range(chance.randrange(6)):
            if model.records and chance.random() < 0.45:
                gone = chance.choice(model.records)
                table.remove((kind(*gone),))  # an equal one
                model.records.remove(gone)
            else:
                record = some(kind, chance)
                if model.get(*model.key(record)) is None:
                    table.add((record,))
                    model.records.append(record)
                else:
                    with pytest.raises(StoreError, match="there is a"):
                        table.add((record,))
        compare(table, model, chance)
        if chance.random() < 0.4:
            undo(journal)
            model.records = before
            compare(table, model, chance)
        journal.clear()
    missing = some(kind, chance)._replace(**{kind._fields[-1]: 99})
    with pytest.raises(StoreError, match="there is no"):
        table.remove((missing,))


def test_what_is_not_plain_is_refused() -> None:
    table, journal = table_of(Cooldown)
    for record in (
        Cooldown(1, 2, 3.0),
        Cooldown(1, True, 3),
        Cooldown([], 2, 3),
        (1, 2),
        None,
        [1],
    ):  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            table.add((record,))  # type: ignore[arg-type]
    for record in ((1, 2), None):
        with pytest.raises(TypeError):
            table.remove((record,))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        table.get(1)
    with pytest.raises(TypeError):
        table.where("network", equal=(1, 2))
    with pytest.raises(KeyError):
        table.where("ordinal", equal=(1,))
    with pytest.raises(KeyError):
        table.up_to("network", "ordinal", equal=(1, 2), limit=1)
    ports, noted = table_of(Publication)
    for port in (-1, 2**64, None, "80"):
        with pytest.raises(NetallocError):
            ports.add([Publication(1, 2, 0, "tcp", port, 1, 80)])  # type: ignore[arg-type]
    assert noted == [] and ports.all() == []
    with pytest.raises(TypeError):
        RecordMaker(Cooldown).make((1, 2))
    with pytest.raises(TypeError):
        RecordMaker(int)
    assert journal == [] and table.all() == []


def test_neither_records_nor_interfaces_are_known_to_the_collector() -> None:
    table, _ = table_of(Lease)
    lease = Lease(1, 2, 3, 0, "web", None, 5)
    assert gc.is_tracked(lease)
    table.add((lease,))
    assert not gc.is_tracked(lease)
    with NetworkManager("br0", network="10.0.0.1/8", backend="null") as manager:
        gc.collect()
        before = len(gc.get_objects())
        held = [manager.allocate(f"container-{i}", key="eth0") for i in range(1000)]
        gc.collect()
        assert len(gc.get_objects()) < before + 100
        assert manager.find("container-7") == [held[7]]


@pytest.mark.parametrize("with_probe", [False, True])
def test_an_interface_keeps_nothing_alive_that_refers_to_it(with_probe: bool) -> None:
    class Host:
        def __init__(self) -> None:
            self.manager = NetworkManager(
                "br0",
                network="10.0.0.1/24",
                backend="null",
                probe=self.probe if with_probe else None,
            )
            self.held = [self.manager.allocate(f"{i}") for i in range(3)]
            self.again = self.manager.find("1")

        def probe(self, *_: object) -> bool:
            return True

    host = Host()
    assert gc.is_tracked(host.held[0]) == gc.is_tracked(host.again[0]) == with_probe
    there = [
        weakref.ref(one)
        for one in (host, host.manager, host.held[0], host.again[0], host.manager._leases)
    ]
    assert copy.copy(host.held[0]) is copy.deepcopy(host.held[0]) is host.held[0]
    del host
    gc.collect()
    assert [one() for one in there] == [None] * 5


def test_what_was_held_once_costs_nothing_later() -> None:
    """Memory, and with it the time of going through all of it, follows what is held."""
    table, journal = table_of(Lease)
    tracemalloc.start()
    try:
        records = [Lease(1, i, i, 0, "crowd", None, 5) for i in range(50_000)]
        table.add(records)
        journal.clear()
        full = tracemalloc.get_traced_memory()[0]
        table.remove(records[100:])
        journal.clear()
        del records
        assert tracemalloc.get_traced_memory()[0] < full / 50
    finally:
        tracemalloc.stop()
    assert len(table.where("network", "owner", equal=(1, "crowd"))) == 100


def no_memory_at(n: int, step: Any) -> bool:
    """Whether the n-th allocation of a step was made to fail, which ended it."""
    testcapi = pytest.importorskip("_testcapi") if not os.environ.get("CI") else _testcapi()
    testcapi.set_nomemory(n, n + 1)
    try:
        step()
    except MemoryError:
        return True
    finally:
        testcapi.remove_mem_hooks()
    return False


def _testcapi() -> Any:
    import _testcapi

    return _testcapi


@pytest.mark.parametrize("kind", [Lease, Cooldown, EndedLease, Publication])
def test_without_memory_nothing_is_half_entered(kind: type[Any]) -> None:
    """One allocation of each step fails, then all is undone: as it was."""
    chance = random.Random(kind.__name__)
    (table, journal), model = table_of(kind), Model(kind)
    while len(model.records) < 30:
        record = some(kind, chance)
        if model.get(*model.key(record)) is None:
            table.add((record,))
            model.records.append(record)
    journal.clear()
    failures = 0
    for i in range(40):
        record = some(kind, chance)._replace(**{TABLES[kind].key[-1]: 100 + i})
        gone = chance.choice(model.records)
        for n in range(100):
            failed = no_memory_at(n, lambda: (table.remove((gone,)), table.add((record,))))  # noqa: B023
            failures += failed
            undo(journal)
            compare(table, model, chance)
            if not failed:
                break
    assert failures >= 15


def test_a_bitmap_is_undone_step_by_step() -> None:
    journal: Journal = []
    bitmap = JournaledBitmap(5000, journal)
    chance = random.Random(7)
    states = []
    for _ in range(300):
        states.append((len(journal), set(range(5000)) - _free(bitmap), bitmap.cursor))
        step = chance.randrange(5)
        if step == 0:
            bitmap.acquire()
        elif step == 1:
            bitmap.acquire_ranges(chance.randrange(1, 40))
        elif step == 2 and len(bitmap):
            taken = bitmap.next_set(chance.randrange(5000))
            bitmap.release(bitmap.next_set(0) if taken is None else taken)  # type: ignore[arg-type]
        elif step == 3:
            ordinal = bitmap.next_free(chance.randrange(4000))
            if ordinal is not None:
                bitmap.reserve(ordinal)
        else:
            bitmap.cursor = chance.randrange(5000)
    for length, taken, cursor in reversed(states):
        undo(journal, length)
        assert (set(range(5000)) - _free(bitmap), bitmap.cursor) == (taken, cursor)


def _free(bitmap: JournaledBitmap) -> set[int]:
    return {ordinal for ordinal in range(5000) if ordinal not in bitmap}

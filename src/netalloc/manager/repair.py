"""Repairing a store file: a copy is kept, what can be read is taken over, the rest kept shut."""

from __future__ import annotations

import os
import shutil
import time
from bisect import bisect_right
from collections import Counter
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from netalloc.errors import StoreError
from netalloc.host.boot import boot_id
from netalloc.ipam.check import all_addresses, rebuild
from netalloc.ipam.mend import QUARANTINE, look, take
from netalloc.ipam.networks import CONFIGURED
from netalloc.logs import Log
from netalloc.manager.leases import LeaseService
from netalloc.manager.upkeep import reconcile
from netalloc.store.protocol import Transaction
from netalloc.store.records import (
    TABLES,
    Cooldown,
    EndedLease,
    GcCandidate,
    Label,
    Lease,
    Network,
    Publication,
    Reservation,
)
from netalloc.store.sqlite import file as files
from netalloc.store.sqlite import place
from netalloc.store.sqlite.alone import alone, held
from netalloc.store.sqlite.connection import Connection
from netalloc.store.sqlite.file import StoreFile
from netalloc.store.sqlite.salvage import Salvage, copy, lost_generations, salvage
from netalloc.store.sqlite.schema import version_of
from netalloc.store.sqlite.store import SqliteStore
from netalloc.store.sqlite.transaction import SqliteTransaction
from netalloc.store.sqlite.versions import VERSION
from netalloc.store.sqlite.write_lock import WriteLock
from netalloc.store.sqlite.writer_record import WriterRecord
from netalloc.values import as_seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from netalloc.ipam.change import Change
    from netalloc.ipam.mend import Step

log = Log(__name__)
_SALVAGE = ".salvage-"
_AT_ONCE = 100  # steps in one change: some 10 ms in a file
_LOOKS = 3  # what is mended may show what else differs


def repair(path: str | os.PathLike[str], *, timeout: float = 10.0) -> list[str]:
    """Repair a store file, whatever is wrong with it; says what was done.

    A copy of the file as it was is kept beside it. An address that is marked as taken, but
    whose lease is lost, is reserved (for the owner QUARANTINE) until `unreserve`, for it may be in
    use. The next manager makes kernel and store agree.

    Where the file itself is whole, it is gone through while others go on with it, and what
    differs is mended in changes of some milliseconds. Where it is damaged, of an older version
    or of another boot, nothing else can be done with it meanwhile: a new file is made, 20
    microseconds a lease, of every record that can be read and has the right checksum. Other
    processes, and this one, go on with that at their next call.

    Raises StoreError when a writer does not give way, or when nothing can be read: then the
    file stays as it is.
    """
    timeout = as_seconds(timeout, "timeout")
    path = _checked(path)
    done = _mend_in_place(path, timeout)
    return make_anew(path, timeout=timeout) if done is None else done


def make_anew(path: str | os.PathLike[str], *, timeout: float = 10.0) -> list[str]:
    """The same by a new file in any case; every other call waits meanwhile."""
    timeout = as_seconds(timeout, "timeout")
    path = _checked(path)
    user = object()
    file = files.enter(path, user)
    try:
        with held(file, timeout):
            mark = file.lock.enter("repair", timeout)
            try:
                with alone(file, timeout):
                    return _repair(file, mark)
            except BaseException as error:
                if mark is None:  # there was no lock file
                    Path(file.lock.path).unlink(missing_ok=True)
                if isinstance(error, OSError):
                    raise StoreError(f"{path} could not be repaired: {error.strerror}") from error
                raise
            finally:
                file.lock.leave()
    finally:
        files.leave(file, user)


def _checked(path: str | os.PathLike[str]) -> Path:
    """The resolved path, at which there is what may be a store."""
    path = Path(place.resolved(path))
    place.check_folder(path)
    if place.look_at(path) is None:
        raise StoreError(f"{path} is gone: put a copy back, or remove {path}.lock to begin anew")
    place.check_beside(path)
    return path


def _mend_in_place(path: Path, timeout: float) -> list[str] | None:
    """What was mended; None where the file has to be made anew."""
    try:
        if not _is_of_today(path, timeout):
            return None
        with SqliteStore(path, timeout=timeout) as store:
            if store.check():
                return None
            steps = store.survey(look)
            done = [f"a copy of the file as it was: {_copy(path, store.copy_to)}"]
            run = partial(store.run, "repair", durable=True)
            agrees = _take_all(steps, store.survey, lambda some: run(partial(_mend, some)), done)
            run(lambda tx: _sweep(path))
            return done if agrees else None
    except StoreError as error:
        log.info("%s is made anew: %s", path, error)
        return None


def _take_all(
    steps: list[Step],
    survey: Callable[[Callable[[Transaction], list[Step]]], list[Step]],
    change: Callable[[list[Step]], list[str]],
    done: list[str],
) -> bool:
    """Take steps, and those to mend what shows then, in changes; whether nothing differs more."""
    for _ in range(_LOOKS):
        for i in range(0, len(steps), _AT_ONCE):
            done += change(steps[i : i + _AT_ONCE])
        steps = survey(look) if steps else []
    return not steps


def _is_of_today(path: Path, timeout: float) -> bool:
    """Whether the file is of this version and this boot, and its lock file tells of it."""
    user = object()
    file = files.enter(path, user)
    try:
        mark = file.lock.peek()
        if mark is None or not mark.known:
            return False

        def look_at() -> bool:
            session = file.reader()
            if version_of(session) != VERSION:
                return False
            ((boot,),) = session.rows("SELECT boot FROM state")
            return bool(boot == boot_id())

        return file.while_viewing("repair", timeout, look_at)
    finally:
        files.leave(file, user)


def _mend(steps: list[Step], tx: SqliteTransaction) -> list[str]:
    done = take(steps, tx)
    if done:
        tx.mark_all_dirty()
    return done


def _repair(file: StoreFile, mark: WriterRecord | None) -> list[str]:
    path = Path(file.path)
    _sweep(path)
    with TemporaryDirectory(dir=path.parent, prefix=path.name + _SALVAGE) as folder:
        fresh = Path(folder) / path.name
        copy(path, fresh)
        found = salvage(fresh)
        if not found.records[Network]:
            raise StoreError(
                f"nothing can be read of {path}: put a backup in its place, or, when "
                f"nothing of it is in use any more, remove it and {file.lock.path} to begin anew"
            )
        kept = _copy(path, partial(copy, path))
        done = [f"a copy of the file as it was: {kept}"]
        done += [f"lost: {what}" for what in found.lost]
        return done + _replace(path, Path(folder) / "repaired", found, file.lock, mark)


def _sweep(path: Path) -> None:
    """Remove what a repair that died has left; while no other is under way."""
    for left in [one for one in path.parent.iterdir() if one.name.startswith(path.name + _SALVAGE)]:
        shutil.rmtree(left, ignore_errors=True)


def mend(leasing: LeaseService) -> list[str]:
    """Mend the store behind leases, and the kernel after it."""
    store = leasing.committer.store
    path = getattr(store, "path", None)
    if path is not None:
        done = repair(path)
    else:
        done = []
        run = partial(leasing.run, "repair")
        steps = leasing.survey(look)
        _take_all(steps, leasing.survey, lambda some: run(partial(_take, some)), done)
    return [*done, f"kernel: {reconcile(leasing)}"]


def _replace(
    path: Path, fresh: Path, found: Salvage, lock: WriteLock, mark: WriterRecord | None
) -> list[str]:
    """Make a new file of what was found, and put it in the place of the old one."""
    # Of which boot the leases are may be lost: to keep them is the safe side.
    boot = found.boot or (mark.boot if mark else "") or boot_id()
    identity = found.counters.get("store", 0) or (mark.store if mark else 0)
    before = max(found.sequence, mark.sequence if mark else 0)
    with SqliteStore(fresh, boot=boot) as store:

        def change(tx: SqliteTransaction) -> tuple[list[str], WriterRecord]:
            done = _fill(tx, found, before)
            networks = frozenset(one.number for one in tx.table(Network).all())
            store = tx.succeed(identity, before)
            return done, WriterRecord(0, "", boot, tx.sequence + 1, networks, store)

        done, record = store.run("repair", change, durable=True)
        store.write_back()
    # A log that stayed would be played into the new file. Death between the two must not
    # leave the old one without what was in it.
    with suppress(StoreError), closing(Connection(path)) as connection:
        connection.rows("PRAGMA wal_checkpoint(TRUNCATE)")
    lock.write(record._replace(sequence=before))
    for suffix in place.SIDE_FILES:
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    fresh.replace(path)
    lock.write(record)
    return done


def _fill(tx: Transaction, found: Salvage, before: int) -> list[str]:
    """Take over the records that make sense together, of a file with so many changes before."""
    done = []
    records = found.records
    networks = {one.number for one in records[Network]}
    held = {(lease.network, lease.ordinal) for lease in records[Lease]}
    for kind in TABLES:
        # Damage may show a row twice.
        once = {tuple(getattr(r, name) for name in TABLES[kind].key): r for r in records[kind]}
        good = [r for r in once.values() if kind is Network or r.network in networks]
        if kind in (Label, Publication, GcCandidate):
            good = [r for r in good if (r.network, r.ordinal) in held]
        if len(good) < len(records[kind]):
            done.append(
                f"dropped {len(records[kind]) - len(good)} of {kind.__name__} that belong nowhere"
            )
        if kind is Lease:
            good = _untwinned(_recounted(good, records[Publication]))
        tx.table(kind).add(good)
    _advance(tx, "generation", lost_generations(found))
    _advance(tx, "past", max([one.number for one in records[EndedLease]], default=0) + 1)
    _advance(tx, "network", max(max(networks) + 1, found.counters.get("network", 1)))
    # More than it ever was, whatever can be read of it, as each step of it was a change: so every
    # manager that is open looks whether its network is still there.
    _advance(tx, CONFIGURED, before + 2)
    done += _quarantine(tx, found, held)
    rebuild(tx)
    return done


def _recounted(leases: list[Lease], publications: list[Publication]) -> list[Lease]:
    """The leases, each with as many publications as are left of it."""
    counts = Counter((row.network, row.ordinal) for row in publications)
    return [
        lease
        if lease.publications == (count := counts[lease.network, lease.ordinal])
        else lease._replace(publications=count)
        for lease in leases
    ]


def _untwinned(leases: list[Lease]) -> list[Lease]:
    """The leases, of which the first of an owner and key alone keeps the key."""
    seen: set[tuple[int, str | None, str]] = set()
    kept = []
    for lease in sorted(leases, key=lambda lease: lease.generation):
        if lease.key is not None:
            name = lease.network, lease.owner, lease.key
            kept.append(lease._replace(key=None) if name in seen else lease)
            seen.add(name)
        else:
            kept.append(lease)
    return kept


def _advance(tx: Transaction, counter: str, first: int) -> None:
    """Let the counter go on from there."""
    if first > 1:
        tx.next(counter, first - 1)


def _within(ordinal: int, starts: list[int], runs: tuple[tuple[int, int], ...]) -> bool:
    """Whether one of the runs, which are in order and begin at `starts`, has the ordinal."""
    last = bisect_right(starts, ordinal) - 1
    return last >= 0 and ordinal < runs[last][1]


def _quarantine(tx: Transaction, found: Salvage, held: set[tuple[int, int]]) -> list[str]:
    done = []
    known: dict[int, set[int]] = {}
    for network, ordinal in held:
        known.setdefault(network, set()).add(ordinal)
    for kind in (Reservation, Cooldown):
        for record in found.records[kind]:
            known.setdefault(record.network, set()).add(record.ordinal)
    for addresses in all_addresses(tx):
        subnet, number = addresses.subnet, addresses.number
        marked = found.marked.get(f"addresses/{number}", set()) - known.get(number, set())
        never = subnet.excluded()
        starts = [start for start, _ in never]
        lost = [i for i in sorted(marked) if not _within(i, starts, never)]
        now = time.time_ns()
        tx.table(Reservation).add(Reservation(number, i, QUARANTINE, now) for i in lost)
        done += [f"{subnet.address(i)} is reserved: {QUARANTINE}" for i in lost]
    return done


def _take(steps: list[Step], made: Change) -> list[str]:
    return take(steps, made.tx)


def _copy(path: Path, write: Callable[[Path], None]) -> Path:
    number = 1
    while os.path.lexists(kept := path.with_name(f"{path.name}.damaged-{number}")):
        number += 1
    try:
        write(kept)
    except BaseException:
        place.remove(kept)
        raise
    return kept

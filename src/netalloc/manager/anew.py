"""Making a store file anew: a copy is kept, what can be read is taken over, the rest kept shut."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import mkdtemp

from netalloc.errors import StoreError
from netalloc.host.boot import boot_id
from netalloc.ipam import allowances
from netalloc.ipam.check import all_addresses, rebuild
from netalloc.ipam.mend import QUARANTINE
from netalloc.ipam.networks import CONFIGURED
from netalloc.store.protocol import Transaction
from netalloc.store.records import (
    TABLES,
    Allowance,
    Attachment,
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
from netalloc.store.sqlite.refusals import raise_refusal
from netalloc.store.sqlite.salvage import Salvage, copy, lost_generations, salvage
from netalloc.store.sqlite.store import SqliteStore
from netalloc.store.sqlite.transaction import SqliteTransaction
from netalloc.store.sqlite.write_lock import WriteLock
from netalloc.store.sqlite.writer_record import WriterRecord

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_SALVAGE, _REPAIRED = ".salvage-", "repaired"


def keep_copy(path: Path, timeout: float) -> Path:
    """Copy a file and its log, byte by byte, to a name beside it; others wait for 1 ms in 2 MB."""
    with _shut(path, timeout):
        number = 1
        while os.path.lexists(kept := path.with_name(f"{path.name}.damaged-{number}")):
            number += 1
        try:
            copy(path, kept)
        except BaseException:
            place.remove(kept)
            raise
        return kept


def make_anew(path: Path, timeout: float) -> list[str]:
    """Put a new file, of all that can be read, in the place of one; every other call waits."""
    with _shut(path, timeout) as (lock, mark):
        sweep(path)
        with _folder_beside(path) as folder:
            fresh = folder / path.name
            copy(path, fresh)
            found = salvage(fresh)
            if not found.records[Network]:
                raise StoreError(
                    f"nothing can be read of {path}: put a backup in its place, or, when "
                    f"nothing of it is in use any more, remove it and {lock.path} to begin anew"
                )
            done = [f"lost: {what}" for what in found.lost]
            return done + _replace(path, folder / _REPAIRED, found, lock, mark)


def sweep(path: Path) -> None:
    """Remove what a repair that died has left; while no other is under way."""
    for left in [one for one in path.parent.iterdir() if one.name.startswith(path.name + _SALVAGE)]:
        shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    """A folder for the copy and the new file. To remove it takes no descriptors."""
    folder = Path(mkdtemp(dir=path.parent, prefix=path.name + _SALVAGE))
    try:
        yield folder
    finally:
        for name in (path.name, _REPAIRED):
            place.remove(folder / name)
            place.unlink(folder / f"{name}.lock")
        folder.rmdir()


@contextmanager
def _shut(path: Path, timeout: float) -> Iterator[tuple[WriteLock, WriterRecord | None]]:
    """A file that nothing has open here, and that no process writes: its lock, and its mark."""
    user = object()
    file = files.enter(path, user)
    try:
        with held(file, timeout):
            mark = file.lock.enter("repair", timeout)
            try:
                with alone(file, timeout):
                    yield file.lock, mark
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
    try:
        with closing(Connection(path)) as connection:
            connection.rows("PRAGMA wal_checkpoint(TRUNCATE)")
    except StoreError as error:
        raise_refusal(error, path)
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
    generations = {lease.generation for lease in records[Lease]}
    for kind in TABLES:
        # Damage may show a row twice.
        once = {tuple(getattr(r, name) for name in TABLES[kind].key): r for r in records[kind]}
        good = [r for r in once.values() if kind is Network or r.network in networks]
        if kind in (Label, Publication, GcCandidate, Attachment, Allowance):
            good = [r for r in good if (r.network, r.ordinal) in held]
        if kind is Attachment:
            good = [r for r in good if r.generation in generations]
        if kind is Allowance:
            good = [r for r in good if all(one in held for one in allowances.ends(r))]
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


def _quarantine(tx: Transaction, found: Salvage, held: set[tuple[int, int]]) -> list[str]:
    done = []
    known: dict[int, set[int]] = {}
    for network, ordinal in held:
        known.setdefault(network, set()).add(ordinal)
    for kind in (Reservation, Cooldown):
        for record in found.records[kind]:
            known.setdefault(record.network, set()).add(record.ordinal)
    for addresses in all_addresses(tx):
        subnets, number = addresses.subnets, addresses.number
        marked = found.marked.get(f"addresses/{number}", set()) - known.get(number, set())
        lost = [i for i in sorted(marked) if subnets.gives(i)]
        now = time.time_ns()
        tx.table(Reservation).add(Reservation(number, i, QUARANTINE, now) for i in lost)
        done += [f"{subnets.address(i)} is reserved: {QUARANTINE}" for i in lost]
    return done

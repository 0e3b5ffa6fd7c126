"""Repairing a store: what differs is mended while others go on, a damaged file is made anew."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from netalloc.errors import StoreError
from netalloc.host.boot import boot_id
from netalloc.ipam.mend import QUARANTINE, changes_mappings, look, take
from netalloc.logs import Log
from netalloc.manager.anew import keep_copy, make_anew, sweep
from netalloc.manager.leases import LeaseService
from netalloc.manager.upkeep import reconcile
from netalloc.store.protocol import Transaction
from netalloc.store.sqlite import file as files
from netalloc.store.sqlite import place
from netalloc.store.sqlite.refusals import raise_refusal
from netalloc.store.sqlite.schema import version_of
from netalloc.store.sqlite.store import SqliteStore
from netalloc.store.sqlite.transaction import SqliteTransaction
from netalloc.store.sqlite.versions import VERSION
from netalloc.values import as_seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from netalloc.ipam.change import Change
    from netalloc.ipam.mend import Step

__all__ = ["QUARANTINE", "make_anew", "mend", "repair"]

log = Log(__name__)
_AT_ONCE = 100  # steps in one change: some 10 ms in a file
_LOOKS = 3  # what is mended may show what else differs


def repair(path: str | os.PathLike[str], *, timeout: float = 10.0) -> list[str]:
    """Repair a store file, whatever is wrong with it; says what was done.

    A copy of the file as it was is kept beside it; others wait for 1 ms in 2 MB of it. An
    address that is marked as taken, but whose lease is lost, is reserved (for the owner
    QUARANTINE) until `unreserve`, for it may be in use. The next manager makes kernel and store
    agree.

    Where the file itself is whole, it is gone through while others go on with it, and what
    differs is mended in changes of some milliseconds. Where it is damaged, of an older version
    or of another boot, nothing else can be done with it meanwhile: a new file is made, 20
    microseconds a lease, of every record that can be read and has the right checksum. Other
    processes, and this one, go on with that at their next call.

    Raises StoreError when a writer does not give way, when nothing can be read, or when the
    system refuses what a repair needs (descriptors, memory, rights, room): then the file stays,
    with what was mended in it so far.
    """
    timeout = as_seconds(timeout, "timeout")
    path = _checked(path)
    kept = keep_copy(path, timeout)
    try:
        done = _mend_in_place(path, timeout)
        if done is None:
            done = make_anew(path, timeout)
    except BaseException:
        place.remove(kept)
        raise
    return [f"a copy of the file as it was: {kept}", *done]


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
            steps, done = store.survey(look), list[str]()
            run = partial(store.run, "repair", durable=True)
            agrees = _take_all(steps, store.survey, lambda some: run(partial(_mend, some)), done)
            run(lambda tx: sweep(path))
            return done if agrees else None
    except OSError as error:
        raise StoreError(f"{path} could not be repaired: {error.strerror}") from error
    except StoreError as error:
        raise_refusal(error, path)
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
    if done and changes_mappings(steps):
        tx.mark_all_dirty()
    return done


def _take(steps: list[Step], made: Change) -> list[str]:
    return take(steps, made.tx)

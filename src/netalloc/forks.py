"""Forking between changes: a child must not inherit a lock, or half a change, from a thread.

What SQLite keeps in memory about a file would say for ever, in the child, that it is being
written to. So a fork waits until the changes of other threads are done: it takes the locks of
all stores, each store's in the order in which the store itself takes them. Where one does not
come, for its thread may be waiting for a lock that the fork has, all are given back and it
begins again. A thread that forks within a change of its own has these locks already (they are
RLocks); its child inherits half a change, which it may neither commit nor make in the kernel.
"""

from __future__ import annotations

import os
from _thread import RLock, get_ident
from _weakref import ref
from functools import partial
from itertools import compress

from netalloc.light import Protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_BACK_OFF = 0.2  # seconds: far longer than a change takes, as a rule
_RELEASE = type(RLock()).release


class Forked(Protocol):
    """Something with locks to be held while the process forks, in this order.

    Its `before_fork`, if it has one, is called when all of them are held.
    """

    def fork_locks(self) -> tuple[Any, ...]: ...
    def after_fork(self) -> None: ...


process = os.getpid()  # as a variable: to ask the kernel at every change costs 60 ns

_guarded: dict[int, ref[Any]] = {}
_held: dict[int, list[Any]] = {}  # by thread; under the locks lies a None


def guard(one: Forked) -> None:
    """Let forks wait for it, and tell it when it finds itself in a child."""
    _guarded[id(one)] = ref(one, partial(_guarded.pop, id(one)))


def _alive() -> list[Any]:
    found = [reference() for reference in _references()]
    return sorted([one for one in found if one is not None], key=id)


def _references() -> list[ref[Any]]:
    """All of them at one moment. A copy of the dict is not: to make one may run the collector,
    which takes some out meanwhile, and it counts fewer than it has.
    """
    while True:
        try:
            return list(_guarded.values())
        except RuntimeError:  # noqa: PERF203  # another thread has changed it: look again
            continue


def _before() -> None:
    _release()
    locks = [lock for one in _alive() for lock in one.fork_locks()]
    while True:
        held = _held[get_ident()] = [None]
        for lock in locks:
            # Taken and noted by one function in C, so that no interrupt comes between.
            held.extend(compress((lock,), map(lock.acquire, (True,), (_BACK_OFF,))))
            if held[-1] is not lock:
                break
        else:
            break
        _release()
    for one in _alive():
        close = getattr(one, "before_fork", None)
        if close is not None:
            close()


def _release() -> None:
    held = _held.get(get_ident())
    if held:
        any(map(_RELEASE, iter(held.pop, None)))  # one function in C, again


def _in_child() -> None:
    global process  # noqa: PLW0603  # this is where it changes
    process = os.getpid()
    for one in _alive():
        one.after_fork()


# An interrupt in one of these functions is reported and ends that function alone: so those
# that must run are there twice.
for _ in range(2):
    os.register_at_fork(after_in_parent=_release, after_in_child=_release)
    os.register_at_fork(after_in_child=_in_child)
os.register_at_fork(before=_before)

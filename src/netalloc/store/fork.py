"""Forking between changes: a child must not inherit a lock, or half a change, from a thread.

What SQLite keeps in memory about a file would say for ever, in the child, that somebody is
writing. So a fork waits until the changes of other threads are done.
"""

import os
import weakref
from threading import RLock
from typing import Any, Protocol


class Forked(Protocol):
    """Something with locks to be held while the process forks, in this order.

    Its `before_fork`, if it has one, is called when all of them are held.
    """

    def fork_locks(self) -> tuple[Any, ...]: ...
    def after_fork(self) -> None: ...


_guarded: "weakref.WeakSet[Any]" = weakref.WeakSet()
_held: list[Any] = []
_one_at_a_time = RLock()


def guard(one: Forked) -> None:
    """Let forks wait for it, and tell it when it finds itself in a child."""
    _guarded.add(one)


def _before() -> None:
    _one_at_a_time.acquire()
    for one in sorted(_guarded, key=id):
        for lock in one.fork_locks():
            lock.acquire()
            _held.append(lock)
    for one in list(_guarded):
        close = getattr(one, "before_fork", None)
        if close is not None:
            close()


def _release() -> None:
    while _held:
        _held.pop().release()
    _one_at_a_time.release()


def _in_child() -> None:
    for one in list(_guarded):
        one.after_fork()
    _release()


os.register_at_fork(before=_before, after_in_parent=_release, after_in_child=_in_child)

"""Callers that wait for one to make the changes of all, and who that is."""

from __future__ import annotations

from _thread import allocate_lock as Lock
from _thread import get_ident

from netalloc.errors import StoreError
from netalloc.ipam.change import Change
from netalloc.manager.calls import Calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_POLL = 0.2  # seconds: only where an interrupt kept a leader from handing on


class Waiter:
    """A caller in the queue, and what came of its operation.

    It is done when its change is committed, from that very moment on, or refused for good.
    """

    __slots__ = (
        "alone",
        "change",
        "durable",
        "error",
        "made",
        "operation",
        "refused",
        "result",
        "wake",
    )

    def __init__(self, operation: str, change: Callable[[Change], Any], durable: bool) -> None:
        self.operation = operation
        self.change = change
        self.durable = durable
        self.alone = False  # it shared a transaction that failed
        self.refused = False
        self.made: Change | None = None
        self.result: Any = None
        self.error: Exception | None = None
        self.wake = Lock()  # released when it is done, or may lead
        self.wake.acquire()

    @property
    def done(self) -> bool:
        """Whether there is a result, or an error, for good."""
        return self.refused or (self.made is not None and self.made.tx.committed)

    def after(self) -> list[Callable[[], Any]]:
        """What is to be done now that the change is made."""
        return [] if self.made is None else self.made.after


class Queue:
    """The callers among `calls` that wait, in the order in which they came.

    `leader` is a hint that keeps the others from leading too: what is made once is made in a
    turn of the store, which one thread has at a time. So nothing is lost with a leader that an
    interrupt took away: the next caller sees that it has left, or the first one that tires of
    waiting.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self.leader: Waiter | None = None

    def leads(self, caller: Waiter) -> bool:
        """Whether it is the caller's turn to lead; if it is, it is the leader."""
        leader = self.leader
        # One that is of the caller's own thread lies beneath it, in a frame that is interrupted.
        if leader is None or self._calls.inside.get(leader, get_ident()) == get_ident():
            self.leader = caller
            return True
        return False

    def wait(self, caller: Waiter) -> None:
        """Until it is done, or may lead."""
        caller.wake.acquire(True, _POLL)

    def waiting(self) -> list[Waiter]:
        """All whose operation is still to be made."""
        found = self._calls.inside.copy()  # one step, with or without a GIL
        return [one for one in found if isinstance(one, Waiter) and not one.done]

    def group(self, leader: Waiter, durable: bool) -> list[Waiter]:
        """Those whose changes are made in one transaction, the leader's among them."""
        if leader.done:  # by another leader, while this one waited for the store
            return []
        if leader.alone:
            return [leader]
        return [one for one in self.waiting() if not one.alone and (durable or not one.durable)]

    def refuse(self, leader: Waiter, waiting: list[Waiter], error: Exception) -> None:
        """Let all of them have the error that kept the leader from beginning."""
        if self.leader is leader and isinstance(error, StoreError):
            for one in waiting:
                if one is not leader:
                    one.error = StoreError(*error.args)
                    one.refused = True

    def hand_on(self, leader: Waiter, group: list[Waiter]) -> None:
        """Wake those that are done, and the first that is not: it leads."""
        for one in group:
            if one is not leader and one.done:
                _wake(one)
        waiting = [one for one in self.waiting() if one is not leader]
        for one in waiting[:1]:
            _wake(one)


def _wake(one: Waiter) -> None:
    try:
        one.wake.release()
    except RuntimeError:
        pass  # it is awake

"""Work that changes what outlives the process, in a thread that no interrupt reaches.

Python delivers signals to its main thread alone. So what is made of many steps and must be done
whole or not at all is done in a thread of its own, which may also go from one network namespace
to another without the caller's being moved. The caller waits; when an interrupt ends the wait,
the thread is told, and what it has made is undone before the interrupt goes on. Starting the
thread and coming back takes about 60 µs.
"""

from _thread import allocate_lock, start_new_thread

from netalloc.light import Protocol


class Job(Protocol):
    """Something to do; `cancelled` says to stop early.

    What fails or stops early undoes itself, for the thread may be in another namespace by then;
    `undo` is for what was done, by the caller's thread.
    """

    cancelled: bool

    def do(self) -> None: ...
    def undo(self) -> None: ...


def carry_out(job: Job) -> None:
    """Do it; after any error, and any interrupt of the caller, all of it is undone.

    The thread begins in the caller's network namespace. A second interrupt while the first
    one's undoing is waited for can leave some of it.
    """
    hand = _Hand(job)
    try:
        start_new_thread(hand.run, ())
        hand.done.acquire()
        if hand.failure is not None:
            raise hand.failure
    except BaseException:
        hand.stop()
        raise


class _Hand:
    def __init__(self, job: Job) -> None:
        self.job = job
        self.failure: BaseException | None = None
        self.done = allocate_lock()
        self.done.acquire()
        self._begun = allocate_lock()  # by the first to get it: the thread, or what stops it
        self._ended = False

    def run(self) -> None:
        if not self._begun.acquire(False):
            return
        try:
            self.job.do()
        except BaseException as error:
            self.failure = error
        finally:
            self._ended = True
            self.done.release()

    def stop(self) -> None:
        self.job.cancelled = True
        if self._begun.acquire(False):
            return  # the thread never began, or there is none
        if not self._ended:
            self.done.acquire()
        if self.failure is None:
            self.job.undo()

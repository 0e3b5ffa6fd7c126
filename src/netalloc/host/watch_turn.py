"""One watcher at a time for each network of a network namespace, in whatever process.

The turn is a lock (OFD, fcntl(2)) on a FIFO of the runtime directory. The one that has it has the
FIFO open to write as well; those that wait have it open to read, so the kernel wakes them when
the turn is given up, or its process dies. Waiting costs nothing.
"""

import os
import select
import stat
from contextlib import suppress
from weakref import WeakSet

from netalloc.closing import Closing
from netalloc.host import netns, runtime_dir
from netalloc.host.namespace_lock import WATCH, file_name
from netalloc.host.ofd_lock import READ, WRITE, set_lock

_TURN = 0  # the byte that is locked
_LOOK_AGAIN = 60_000  # milliseconds: only where a turn was given up before its FIFO was open

_open: "WeakSet[WatchTurn]" = WeakSet()


class WatchTurn(Closing):
    """The turn to watch one network of the caller's network namespace."""

    def __init__(self, network: int) -> None:
        self._name = f"{file_name(*netns.current())}{WATCH}{network}"
        self._fds: list[int] = []
        _open.add(self)

    def take(self) -> bool:
        """Take the turn if no other has it; true, too, where this has it already."""
        if self._fds:
            return True
        fd = self._opened(os.O_RDWR)
        self._fds.append(fd)
        if set_lock(fd, WRITE, _TURN):
            return True
        self.close()
        return False

    def wait(self, stopped: int) -> bool:
        """Wait for the turn; false once there is something to read at the descriptor `stopped`."""
        while not self.take():
            waiting = self._opened(os.O_RDONLY)
            try:
                poll = select.poll()
                poll.register(stopped, select.POLLIN)
                poll.register(waiting, 0)  # tells of the end of the last writer in any case
                if set_lock(waiting, READ, _TURN):
                    continue  # given up since
                if stopped in {fd for fd, _ in poll.poll(_LOOK_AGAIN)}:
                    return False
            finally:
                runtime_dir.close_file(waiting)
        return True

    def close(self) -> None:
        """Give the turn up; a second time is no error."""
        while self._fds:
            runtime_dir.close_file(self._fds.pop())

    def _opened(self, flags: int) -> int:
        with runtime_dir.opened() as directory:
            with suppress(FileExistsError):
                os.mkfifo(self._name, 0o600, dir_fd=directory)
            return runtime_dir.open_file(directory, self._name, flags, kind=stat.S_IFIFO)


def _after_fork() -> None:
    """The child's copies go, or the turn would stay with it when the parent ends."""
    for one in list(_open):
        one.close()


os.register_at_fork(after_in_child=_after_fork)

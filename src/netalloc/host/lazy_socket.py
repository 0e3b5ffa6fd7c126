"""A netlink socket that is opened when it is needed, and kept."""

from netalloc import forks
from netalloc.host.netlink import NetlinkSocket
from netalloc.host.netns import HomeNamespace


class LazySocket:
    """Opens a socket at the first use and keeps it; a child process gets its own.

    It belongs to the network namespace in which this was made: a thread in another one can
    use the socket while it is open, and gets a NetallocError where one would be opened.
    Keeping is no luxury: the kernel ends a nftables transaction in the background, and a
    netfilter socket that is closed meanwhile waits for it, 10 ms and more.
    """

    def __init__(self, protocol: int) -> None:
        self._kept: NetlinkSocket | None = None
        self._protocol = protocol
        self._home = HomeNamespace()

    def get(self) -> NetlinkSocket:
        """The socket, opened if it is not; NetlinkError or NetallocError when it cannot be."""
        kept = self._kept
        if kept is not None and kept.pid != forks.process:  # the parent would read our answers
            kept.close()
            kept = None
        if kept is None:
            self._home.check()
            kept = self._kept = NetlinkSocket(self._protocol)
        return kept

    def close(self) -> None:
        """Close it; the next call opens another one."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def __del__(self) -> None:
        # No caller asked for this socket, so none has to be warned that it was not closed.
        if hasattr(self, "_kept"):
            self.close()

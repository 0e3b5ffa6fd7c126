"""What this process may do to the network of the machine."""

from netalloc.errors import NetallocError

_NET_ADMIN = 12  # CAP_NET_ADMIN, linux/capability.h


def effective() -> int:
    """The effective capabilities of the calling thread, a bit each."""
    with open("/proc/thread-self/status") as status:  # noqa: PTH123  # pathlib takes 5 ms to load
        for line in status:
            if line.startswith("CapEff:"):
                return int(line.split()[1], 16)
    raise NetallocError("/proc/thread-self/status has no CapEff")


def may_change_network() -> bool:
    """Whether it has CAP_NET_ADMIN, which all that touches the kernel needs."""
    return bool(effective() >> _NET_ADMIN & 1)

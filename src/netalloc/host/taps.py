"""Taps for microVMs: one queue, persistent, opened by their owner without privilege.

A tap with IFF_MULTI_QUEUE has 256 queues, takes 9 ms and 6.7 MiB: never that. It becomes
persistent only when all else is done, so that one that a killed process was making goes with it.
"""

import errno
import fcntl
import os
import struct
from collections.abc import Iterable, Sequence

from netalloc.errors import InterfaceError
from netalloc.host.attach_steps import Plan, Step, settle
from netalloc.host.attached import Present
from netalloc.host.attaching import Bridged, Routed
from netalloc.host.attachment import Attaching
from netalloc.host.endpoints import Endpoint, checked
from netalloc.host.netlink import NetlinkError, NetlinkSocket, Request
from netalloc.host.way_elements import WayElements
from netalloc.host.worker import carry_out

_DEVICE = "/dev/net/tun"
# linux/if_tun.h
_SET_IFF, _SET_PERSIST, _SET_OWNER = 0x400454CA, 0x400454CB, 0x400454CC
_SET_GROUP, _SET_INDEX = 0x400454CE, 0x400454DA
_TAP, _NO_PI, _VNET_HDR, _EXCLUSIVE = 0x0002, 0x1000, 0x4000, 0x8000
_REQUEST = struct.Struct("16sH22x")
_INDEX = struct.Struct("=I")


def attach_taps(
    endpoints: Iterable[Endpoint],
    *,
    group: int = 0,
    bridge_index: int | None = None,
    hairpin: bool = False,
    static: bool = False,
    ways: WayElements | None = None,
) -> None:
    """Make taps, behind routes of their own or on a bridge; all of them or none.

    What is inside of the machine is set up by the machine: its address, routed the default
    routes by 169.254.1.1 and fe80::1 at 02:fe:fe:fe:fe:fe. Raises as `attach_routed` and
    `attach_bridged` do. 0.3 ms each.
    """
    found = checked(endpoints, in_netns=False)
    if bridge_index is None:
        carry_out(RoutedTaps(found, group, ways))
    else:
        carry_out(BridgedTaps(found, bridge_index, group, hairpin, static))


class _Taps(Attaching):
    """What differs from a veth pair: it is made by ioctl, and nothing is inside."""

    def _make_fresh(
        self, host: NetlinkSocket, part: Sequence[Endpoint]
    ) -> list[tuple[Endpoint, Present]]:
        there = []
        opened: list[tuple[Endpoint, int]] = []
        try:
            for one in part:
                fd = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
                opened.append((one, fd))
                failure = _create(fd, one)
                if failure is not None:
                    opened.pop()
                    os.close(fd)
                    there.append((one, self._standing(host, one, failure)))
            self._made += [one for one, _ in opened]
            plans = [self._whole(one) for one, _ in opened]
            outcomes = iter(host.outcomes([step.request for plan in plans for step in plan]))
            for (one, _), plan in zip(opened, plans, strict=True):
                settle(host, one, one.index, plan, [next(outcomes) for _ in plan])
            for _, fd in opened:
                fcntl.ioctl(fd, _SET_PERSIST, 1)
        except OSError as error:
            raise InterfaceError(f"{_DEVICE} cannot be used: {error.strerror}") from error
        finally:
            for _, fd in opened:
                os.close(fd)
        return there

    def _whole(self, one: Endpoint) -> Plan:
        return [Step("its settings cannot be made", self._settings(one)), *self._outer(one)]

    def _settings(self, one: Endpoint) -> Request:
        kind, flags, body = super()._settings(one)
        return kind, flags, body + self._end_of(one)


class RoutedTaps(_Taps, Routed):
    pass


class BridgedTaps(_Taps, Bridged):
    pass


def _create(fd: int, one: Endpoint) -> NetlinkError | None:
    """Why the kernel does not make it, where that may be because it is there already."""
    try:
        fcntl.ioctl(fd, _SET_INDEX, _INDEX.pack(one.index))
        flags = _TAP | _NO_PI | _VNET_HDR | _EXCLUSIVE
        fcntl.ioctl(fd, _SET_IFF, _REQUEST.pack(one.name.encode(), flags))
        if one.uid is not None:
            fcntl.ioctl(fd, _SET_OWNER, one.uid)
        if one.gid is not None:
            fcntl.ioctl(fd, _SET_GROUP, one.gid)
    except OSError as error:
        code = error.errno or errno.EIO
        # EINVAL: an interface of that name which is no tap.
        return NetlinkError(errno.EEXIST if code == errno.EINVAL else code)
    return None

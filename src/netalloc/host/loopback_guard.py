"""A guard on a bridge that keeps its containers away from the host's 127.0.0.0/8.

route_localnet on an interface makes the kernel take packets from and to 127.0.0.0/8 there,
which it otherwise drops as martians (ip-sysctl in the kernel's documentation). The guard is
a filter at the interface's ingress (tc-bpf(8)): it drops what comes from the wire with such
a source or destination. Answers to the host's own connections pass: they are addressed to the
bridge until netfilter translates them, which is later, or where it is earlier
(bridge-nf-call-iptables=1), the backends' rules have put MARK on them.

It belongs to the interface, not to a firewall: no flush of rules removes it, it goes along
when the interface is renamed and goes with it. Each user of a bridge sets one of its own, named
by a number; it remembers whether route_localnet was off before any of us came, so that the last
one to leave knows, also after a crash. Bytes are those of linux/pkt_sched.h and linux/filter.h.
"""

import errno
import struct
from hashlib import blake2s
from typing import NamedTuple

from netalloc.errors import CommandError
from netalloc.host.netlink import NETLINK_ROUTE, NetlinkError, NetlinkSocket
from netalloc.host.netlink_messages import CREATE, EXCLUSIVE, attribute, attributes, text

_NEW_QDISC, _DELETE_QDISC, _NEW_FILTER, _DELETE_FILTER, _GET_FILTER = 36, 37, 44, 45, 46
_KIND, _OPTIONS = 1, 2
_OPS_LEN, _OPS, _FLAGS = 4, 5, 8  # TCA_BPF_...
_DIRECT_ACTION = 1
_CLSACT, _CLSACT_HANDLE = 0xFFFFFFF1, 0xFFFF0000
_INGRESS, _EGRESS = 0xFFFFFFF2, 0xFFFFFFF3
_PRIORITY, _ALL = 7, 3 << 8  # before the 49152 that tc gives; ETH_P_ALL in network order
_TCMSG = struct.Struct("=BxxxiIII")  # struct tcmsg: family, interface, handle, parent, info
_STEP = struct.Struct("=HBBI")

_DROP, _NEXT = 2, 0xFFFFFFFF  # TC_ACT_SHOT, TC_ACT_UNSPEC: whatever else filters decides
# SKF_NET_OFF; SKF_AD_OFF + SKF_AD_PROTOCOL, + SKF_AD_MARK, + SKF_AD_VLAN_TAG
_NET, _PROTOCOL, _SKB_MARK, _TAG = 0xFFF00000, 0xFFFFF000, 0xFFFFF014, 0xFFFFF02C
MARK = 0x6E65746C  # of an answer to the host's own connection; no container can set one
_OPENED, _FOUND = 0x6F70656E, 0x666F756E


class Guard(NamedTuple):
    """One user's filter on an interface; `opened`: route_localnet was off before us."""

    number: int
    opened: bool


def number_of(user: str) -> int:
    """The number of a user's guard."""
    return int.from_bytes(blake2s(user.encode(), digest_size=4).digest(), "big") | 1


def guards(netlink: NetlinkSocket, index: int) -> list[Guard]:
    """Those of ours on an interface; none where it is gone."""
    head = _TCMSG.pack(0, index, 0, _INGRESS, _PRIORITY << 16 | _ALL)
    try:
        bodies, _ = netlink.dump(_GET_FILTER, head)
    except NetlinkError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
            return []  # no such interface, or nothing to hang filters in
        raise
    found = []
    for body in bodies:
        _, there, number, _, info = _TCMSG.unpack_from(body)
        if there != index or info >> 16 != _PRIORITY or not number:
            continue
        program = attributes(attributes(body, _TCMSG.size).get(_OPTIONS, b"")).get(_OPS, b"")
        if program in (_program(opened=True), _program(opened=False)):
            found.append(Guard(number, program == _program(opened=True)))
    return found


def set_guard(netlink: NetlinkSocket, index: int, guard: Guard) -> bool:
    """Set it; whether a place for filters had to be made on the interface.

    Raises CommandError where the kernel lacks cls_bpf or sch_ingress.
    """
    made = True
    try:
        head = _TCMSG.pack(0, index, _CLSACT_HANDLE, _CLSACT, 0)
        netlink.call(_NEW_QDISC, head + text(_KIND, "clsact"), CREATE | EXCLUSIVE)
    except NetlinkError as error:
        if error.errno != errno.EEXIST:
            raise _unavailable(error) from error
        made = False
    program = _program(opened=guard.opened)
    options = attribute(_OPS_LEN, struct.pack("=H", len(program) // _STEP.size))
    options += attribute(_OPS, program)
    options += attribute(_FLAGS, struct.pack("=I", _DIRECT_ACTION))
    body = _filter(index, guard.number) + text(_KIND, "bpf") + attribute(_OPTIONS, options)
    try:
        netlink.call(_NEW_FILTER, body, CREATE)
    except NetlinkError as error:
        raise _unavailable(error) from error
    return made


def remove_guard(netlink: NetlinkSocket, index: int, number: int) -> None:
    """Take one away; none there is no error."""
    try:
        netlink.call(_DELETE_FILTER, _filter(index, number) + text(_KIND, "bpf"))
    except NetlinkError as error:
        if error.errno not in (errno.ENOENT, errno.EINVAL, errno.ENODEV):
            raise


def remove_place(netlink: NetlinkSocket, index: int) -> None:
    """Remove the place for filters that `set_guard` made, if no filter is there."""
    try:
        for parent in (_INGRESS, _EGRESS):
            if netlink.dump(_GET_FILTER, _TCMSG.pack(0, index, 0, parent, 0))[0]:
                return
        head = _TCMSG.pack(0, index, _CLSACT_HANDLE, _CLSACT, 0)
        netlink.call(_DELETE_QDISC, head + text(_KIND, "clsact"))
    except NetlinkError as error:
        if error.errno not in (errno.ENOENT, errno.EINVAL, errno.ENODEV):
            raise


def open_socket() -> NetlinkSocket:
    """A socket for the functions here, in the caller's network namespace."""
    return NetlinkSocket(NETLINK_ROUTE)


def _filter(index: int, number: int) -> bytes:
    return _TCMSG.pack(0, index, number, _INGRESS, _PRIORITY << 16 | _ALL)


def _unavailable(error: NetlinkError) -> CommandError:
    return error.explained("a filter at the bridge (sch_ingress and cls_bpf of the kernel)")


def _program(*, opened: bool) -> bytes:
    """Drop IPv4 from or to 127.0.0.0/8.

    A frame with two VLAN tags of number 0 would be stripped of both behind the filter:
    it is dropped, too, for nothing sends such frames honestly.
    """
    immediate, load_word, load_byte, equal, both, answer = 0x00, 0x20, 0x30, 0x15, 0x54, 0x06
    steps = [
        (immediate, 0, 0, _OPENED if opened else _FOUND),  # read by us, overwritten below
        (load_word, 0, 0, _PROTOCOL),
        (equal, 3, 0, 0x0800),  # IPv4: to the addresses
        (equal, 10, 0, 0x8100),  # 802.1Q: to the tag in front of it
        (equal, 9, 0, 0x88A8),  # 802.1ad
        (answer, 0, 0, _NEXT),
        (load_byte, 0, 0, _NET + 16),  # destination
        (equal, 2, 0, 127),
        (load_byte, 0, 0, _NET + 12),  # source
        (equal, 0, 3, 127),
        (load_word, 0, 0, _SKB_MARK),
        (equal, 1, 0, MARK),
        (answer, 0, 0, _DROP),
        (answer, 0, 0, _NEXT),
        (load_word, 0, 0, _TAG),
        (both, 0, 0, 0x0FFF),
        (equal, 0, 1, 0),
        (answer, 0, 0, _DROP),
        (answer, 0, 0, _NEXT),
    ]
    return b"".join(_STEP.pack(*step) for step in steps)

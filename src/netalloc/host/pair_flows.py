"""Forgetting the flows between two containers, which go on after they were allowed to begin."""

import errno
from collections.abc import Collection

from netalloc.family import FAMILIES
from netalloc.host.flow_messages import DELETE, GET, parse
from netalloc.host.netlink import NETLINK_NETFILTER, NetlinkError, NetlinkSocket, explaining
from netalloc.host.netlink_messages import attributes

_ORIGINAL, _IP = 1, 1


def forget_between(pairs: Collection[tuple[bytes, bytes]]) -> int:
    """Forget the flows that one of two addresses has opened to the other; how many there were.

    Raises CommandError without the privilege; where the kernel has no flow table there is nothing
    to do. O(flows): a listing of a family that has pairs, 5 ms and 2 µs a flow.
    """
    wanted = {pair for one, other in pairs for pair in ((one, other), (other, one))}
    done = 0
    with explaining("flows between containers cannot be forgotten"):
        netlink = NetlinkSocket(NETLINK_NETFILTER)
        try:
            for family in FAMILIES:
                if any(len(one) == family.size for one, _ in wanted):
                    done += _forget(netlink, family.header, wanted)
        except NetlinkError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
        finally:
            netlink.close()
    return done


def _forget(netlink: NetlinkSocket, header: bytes, wanted: set[tuple[bytes, bytes]]) -> int:
    done = 0
    for body in netlink.dump(GET, header)[0]:
        ip = attributes(attributes(attributes(body, 4).get(_ORIGINAL, b"")).get(_IP, b""))
        if tuple(ip.values()) not in wanted:
            continue
        flow = parse(body)
        if flow is None:  # of ICMP, which ends in half a minute
            continue
        try:
            netlink.call(DELETE, flow.name)
            done += 1
        except NetlinkError as error:
            if error.errno != errno.ENOENT:
                raise
    return done

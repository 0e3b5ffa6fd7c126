"""All bridges of the host's networks: no guarded container reaches one unless it may."""

import errno
import struct
from typing import Final

from netalloc.host.netlink import NetlinkError, NetlinkSocket
from netalloc.host.opened import opened
from netalloc.portmap.nftables import batch, elements, members

_OF_BRIDGES: Final = ("route_localnet", "clsact", "loopback6")  # in the host's record


def bridges_of_all(netlink: NetlinkSocket, registry: str) -> set[bytes]:
    """Their indexes, as keys of a set; `registry` is the table of all mappings of nftables.

    Of networks of iptables the host's record says what was switched on for them.
    """
    with opened() as record:
        known = {entry.ifindex for entry in record if entry.what in _OF_BRIDGES}
    return _registered(netlink, registry) | {struct.pack("=I", index) for index in known}


def _registered(netlink: NetlinkSocket, registry: str) -> set[bytes]:
    try:
        question = elements.head(registry, members.BRIDGES)
        bodies, _ = netlink.dump(batch.GET_ELEMENT, question)
    except NetlinkError as error:
        if error.errno != errno.ENOENT:
            raise
        return set()
    return {element.entry[8:12] for element in members.listed(bodies)}

"""All bridges of the host's networks: no guarded container reaches one unless it may."""

import errno
import struct
from typing import Final

from netalloc.host.netlink import NetlinkError, NetlinkSocket
from netalloc.host.opened import opened
from netalloc.portmap.nftables import batch, elements, members

# In the host's record. One that was written before there was "bridge" in it has the others.
_OF_BRIDGES: Final = ("bridge", "route_localnet", "clsact", "loopback6")


def bridges_of_all(netlink: NetlinkSocket, registry: str) -> set[bytes]:
    """Their indexes, as keys of a set; `registry` is the table of all mappings of nftables.

    Those of networks of iptables are in the host's record.
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

"""A mark in our table that says: the fixed part is as netalloc has loaded it.

Only nft can turn the readable ruleset into the kernel's form, and starting it costs more
than all the rest of a short-lived process. So the process that has loaded the ruleset leaves
a digest of what the kernel then had; one that finds the kernel's state to fit it need not
load it again. Any change by others, and any other version of the ruleset, makes it differ.
"""

import errno
from hashlib import blake2s

from netalloc.host.netlink import NetlinkError, NetlinkSocket
from netalloc.host.netlink_messages import CREATE, attribute, text
from netalloc.portmap.nftables import batch
from netalloc.portmap.nftables.elements import INET
from netalloc.portmap.nftables.ruleset import FINGERPRINT, Snapshot

_TABLE, _NAME, _ELEMENTS, _ELEMENT, _KEY, _VALUE = 1, 2, 3, 1, 1, 1


def digest(snapshot: Snapshot, script: str) -> bytes:
    """Four bytes that stand for this state of the kernel, loaded from this script."""
    state = repr((sorted(snapshot.items()), script))
    return blake2s(state.encode(), digest_size=4).digest()


def leave(netlink: NetlinkSocket, table: str, mark: bytes) -> None:
    """Leave this digest, and no other."""
    everything = INET + text(_TABLE, table) + text(_NAME, FINGERPRINT)  # no elements means all
    batch.send(
        netlink,
        [
            batch.Step(batch.DELETE_ELEMENT, 0, everything),
            batch.Step(batch.NEW_ELEMENT, CREATE, _about(table, mark)),
        ],
    )


def fits(netlink: NetlinkSocket, table: str, mark: bytes) -> bool:
    """Whether this digest was left."""
    try:
        return bool(netlink.call(batch.GET_ELEMENT, _about(table, mark)))
    except NetlinkError as error:
        if error.errno != errno.ENOENT:
            raise
        return False


def _about(table: str, mark: bytes) -> bytes:
    element = attribute(_ELEMENT, attribute(_KEY, attribute(_VALUE, mark)))
    return INET + text(_TABLE, table) + text(_NAME, FINGERPRINT) + attribute(_ELEMENTS, element)

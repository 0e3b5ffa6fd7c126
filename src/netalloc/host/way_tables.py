"""The tables of nftables behind the ways of networks, for all networks of the host.

Table `netdev` has the maps from the address of a container to its MAC address and to its
interface, and a chain for each network's device, where a frame goes on to its container. Table
`inet` refuses at once what is for an address that no container has.
"""

import errno
from collections.abc import Sequence
from ipaddress import IPv6Network
from typing import Final, TypeAlias

from netalloc.host import nf_tables
from netalloc.host.netlink import NETLINK_NETFILTER, NetlinkError, NetlinkSocket
from netalloc.host.netlink_messages import attributes
from netalloc.host.nf_tables import INET, NETDEV, Step

TABLE: Final = "netalloc-ways"  # in both families
MACS, ENDS, THERE = "macs", "ends", "there"
DEVICES: Final = "way6-"  # what their names begin with

_EGRESS, _FORWARD, _OUTPUT = 1, 2, 3  # hooks: of netdev, and of inet
_IPV6, _TCP = 10, 6
_ETHERTYPE: Final = b"\x86\xdd"
_ADDRESS_UNREACHABLE: Final = 3
_ENDS_OF_ALL: Final = nf_tables.set_named(NETDEV, TABLE, ENDS)
# What the kernel says where it has no nftables, or no such hook, expression or device.
UNABLE: Final = (
    *(errno.EOPNOTSUPP, errno.ENOENT, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT),
    *(errno.EINVAL, errno.EACCES),
)


def mend(device: str) -> tuple[str, ...]:
    """Make them whole, with a chain for this device; what was wrong. One caller at a time."""
    if are_whole(device):
        return ()
    netlink = NetlinkSocket(NETLINK_NETFILTER)
    try:
        for family in (NETDEV, INET):
            named = nf_tables.table_named(family, TABLE)
            if _has(netlink, nf_tables.GET_TABLE, named) and not nf_tables.is_awake(
                netlink, family, TABLE
            ):
                remove()  # to wake one goes with no other change
        chains = [(NETDEV, device), (INET, "forward"), (INET, "output")]
        gone = [
            step
            for family, chain in chains
            if _has(netlink, nf_tables.GET_CHAIN, nf_tables.chain_named(family, TABLE, chain))
            for step in _chain_deletion(family, chain)
        ]
        try:
            nf_tables.send(netlink, [*_sets(), *gone, *_chains(device)])
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise
            remove()  # there are sets of another kind
            nf_tables.send(netlink, [*_sets(), *_chains(device)])
    finally:
        netlink.close()
    return (f"tables {TABLE} were not whole",)


def _sets() -> list[Step]:
    key = nf_tables.IPV6_ADDR
    return [
        nf_tables.table(NETDEV, TABLE),
        nf_tables.table(INET, TABLE),
        nf_tables.hash_set(NETDEV, TABLE, MACS, key, nf_tables.ETHER_ADDR),
        nf_tables.hash_set(NETDEV, TABLE, ENDS, key, nf_tables.IFACE_INDEX),
        nf_tables.hash_set(INET, TABLE, THERE, key),
    ]


def _chains(device: str) -> list[Step]:
    is_ours = nf_tables.meta_is(nf_tables.OIFNAME, DEVICES.encode())
    is_six = nf_tables.meta_is(nf_tables.NFPROTO, bytes((_IPV6,)))
    is_for_none = (*is_ours, *is_six, nf_tables.address6(), nf_tables.is_not_in(THERE))
    refuse = nf_tables.reject(_ADDRESS_UNREACHABLE)
    return [
        nf_tables.base_chain(NETDEV, TABLE, device, _EGRESS, device=device, drops=True),
        nf_tables.rule(
            *(NETDEV, TABLE, device),
            [
                *nf_tables.frame_is(_ETHERTYPE),
                *(nf_tables.address6(), nf_tables.mapped(MACS), nf_tables.set_receiver()),
                *(nf_tables.address6(), nf_tables.mapped(ENDS), nf_tables.forward()),
            ],
        ),
        nf_tables.base_chain(INET, TABLE, "forward", _FORWARD),
        nf_tables.rule(INET, TABLE, "forward", [*is_for_none, refuse]),
        nf_tables.base_chain(INET, TABLE, "output", _OUTPUT),
        # connect() does not see an ICMP message that comes while it sends, and would wait.
        nf_tables.rule(
            *(INET, TABLE, "output"),
            [
                *nf_tables.meta_is(nf_tables.L4PROTO, bytes((_TCP,))),
                *(*is_for_none, nf_tables.reject(None)),
            ],
        ),
        nf_tables.rule(INET, TABLE, "output", [*is_for_none, refuse]),
    ]


def are_whole(device: str) -> bool:
    """Whether the tables are as we make them: awake, with all rules, at the device."""
    netlink = NetlinkSocket(NETLINK_NETFILTER)
    try:
        for family in (NETDEV, INET):
            if not nf_tables.is_awake(netlink, family, TABLE):
                return False
        chain = nf_tables.chain_named(NETDEV, TABLE, device)
        (body,) = netlink.call(nf_tables.GET_CHAIN, chain)
        if device.encode() + b"\0" not in attributes(body, 4).get(4, b""):
            return False
        counts = (NETDEV, device, 1), (INET, "forward", 1), (INET, "output", 2)
        for family, name, count in counts:
            rules, _ = netlink.dump(nf_tables.GET_RULE, nf_tables.rules_of(family, TABLE, name))
            if len(rules) != count:
                return False
    except NetlinkError as error:
        if error.errno not in UNABLE:
            raise
        return False
    finally:
        netlink.close()
    return True


def _has(netlink: NetlinkSocket, kind: int, body: bytes) -> bool:
    try:
        netlink.call(kind, body)
    except NetlinkError as error:
        if error.errno != errno.ENOENT:
            raise
        return False
    return True


def _chain_deletion(family: bytes, chain: str) -> list[Step]:
    rules = nf_tables.rules_of(family, TABLE, chain)
    named = nf_tables.chain_named(family, TABLE, chain)
    return [Step(nf_tables.DELETE_RULE, 0, rules), Step(nf_tables.DELETE_CHAIN, 0, named)]


# ---- the end of it


def leave(network: IPv6Network, device: str | None) -> None:
    """Take away the elements of a network's containers, and the chain of a device."""
    try:
        netlink = NetlinkSocket(NETLINK_NETFILTER)
    except NetlinkError:
        return  # then there are no tables
    try:
        first, last = network[0].packed, network[-1].packed
        for one in _listed(netlink):
            if first <= one <= last:
                _attempt(netlink, deletions([(one, b"", b"")]))
        if device is not None:
            _attempt(netlink, _chain_deletion(NETDEV, device))
    finally:
        netlink.close()


def _listed(netlink: NetlinkSocket) -> dict[bytes, bytes]:
    try:
        return nf_tables.listed(netlink.dump(nf_tables.GET_ELEMENT, _ENDS_OF_ALL)[0])
    except NetlinkError as error:
        if error.errno not in UNABLE:
            raise
        return {}


def remove() -> None:
    """Take both tables away."""
    try:
        netlink = NetlinkSocket(NETLINK_NETFILTER)
    except NetlinkError:
        return
    try:
        for family in (INET, NETDEV):
            named = nf_tables.table_named(family, TABLE)
            _attempt(netlink, [Step(nf_tables.DELETE_TABLE, 0, named)])
    finally:
        netlink.close()


def _attempt(netlink: NetlinkSocket, steps: list[Step]) -> None:
    try:
        nf_tables.send(netlink, steps)
    except NetlinkError as error:
        if error.errno not in (*UNABLE, errno.EBUSY):
            raise


# ---- elements: of an address, a MAC address and an index


Entries: TypeAlias = Sequence[tuple[bytes, bytes, bytes]]


def additions(some: Entries) -> list[Step]:
    """The steps that add these; the very same is no error, another of the address is: EBUSY."""
    return _elements(nf_tables.NEW_ELEMENT, some)


def deletions(some: Entries) -> list[Step]:
    """The steps that delete what there is of these addresses, which has to be there."""
    return _elements(nf_tables.DELETE_ELEMENT, [(address, b"", b"") for address, _, _ in some])


def _elements(kind: int, some: Entries) -> list[Step]:
    return [
        nf_tables.elements(kind, NETDEV, TABLE, MACS, [(ip, mac) for ip, mac, _ in some]),
        nf_tables.elements(kind, NETDEV, TABLE, ENDS, [(ip, index) for ip, _, index in some]),
        nf_tables.elements(kind, INET, TABLE, THERE, [(ip, b"") for ip, _, _ in some]),
    ]

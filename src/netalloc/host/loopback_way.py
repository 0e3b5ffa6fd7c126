"""The way back to ::1 for what the host asked of routed containers from there: one for all.

An answer that is for ::1 again once it is translated is delivered where ::1 is local to the very
device it came in by (netalloc.host.loopback_route). With a device for each container that would
be a route for each, and every change of any link goes through all routes. So they come in by one
device: what leaves from ::1 gets a source of its own, ANSWERS; what a container sends there is
not tracked when it comes in (`notrack`), goes by a route into one end of a veth pair, and is
tracked and translated when it comes out of the other, where ::1 is local. Nothing else gets
through: what comes out and is not for ::1 then is no answer, and is dropped.

Numbers are those of linux/netfilter_ipv6.h and linux/netfilter/nf_tables.h.
"""

import errno
import logging
from ipaddress import IPv6Address
from typing import Final

from netalloc.family import V6
from netalloc.host import attached, loopback_route, nf_tables, reverse_path, rtnetlink
from netalloc.host.attached import Present
from netalloc.host.netlink import (
    NETLINK_NETFILTER,
    NETLINK_ROUTE,
    NetlinkError,
    NetlinkSocket,
    Request,
    explaining,
)
from netalloc.host.netlink_messages import attribute, text
from netalloc.host.nf_tables import INET, Step
from netalloc.host.opened import Entry
from netalloc.host.way_tables import UNABLE

logger = logging.getLogger(__name__)

# Of the unique local addresses (RFC 4193), those whose global ID is "netal": no host's but as this.
ANSWERS: Final = IPv6Address("fd6e:6574:616c::1")
TABLE: Final = "netalloc-loopback"
_NAME, _ALIAS, _WHAT = "netalloc-lo6", "netalloc-loopback", "answers6"
_INDEX: Final = 0x3EFFFFFE  # two, below those of networks' ways
_MAC: Final = bytes.fromhex("026e61006c6f")
_GROUPS, _MASK = 0x6E000000, 0xFF800000  # groups of routed networks: netalloc.ipam.attachments
_PREROUTING, _RAW = 0, -300
_GONE: Final = (errno.ENODEV, errno.ESRCH, errno.ENXIO)
_EXPLAINING: Final = "the way of answers to ::1"


def note(record: set[Entry], user: str) -> None:
    """Note that this user needs it; to be written before `mend`."""
    record.add(Entry(_WHAT, user, _INDEX, _NAME))


def withdraw(record: set[Entry], user: str) -> None:
    """Note that this user has gone; with the last one the way goes."""
    mine = {entry for entry in record if entry[:2] == (_WHAT, user)}
    if not mine:
        return
    if not any(entry.what == _WHAT for entry in record - mine):
        with explaining(_EXPLAINING):
            _remove()
    record -= mine


def is_whole() -> bool:
    """Whether all of it is there; 60 µs."""
    with explaining(_EXPLAINING):
        host = NetlinkSocket(NETLINK_ROUTE)
        try:
            there = attached.look(host, [_INDEX, _INDEX + 1])
            if not _are_right(there) or not loopback_route.has_route(host, _INDEX + 1):
                return False
            if not loopback_route.leads_to(host, _INDEX, ANSWERS.packed):
                return False
        finally:
            host.close()
        return _is_table_whole()


def mend() -> tuple[str, ...] | None:
    """Make what of it is missing, and say what was; None where the kernel has no such thing.

    One caller at a time: with the lock of the record.
    """
    with explaining(_EXPLAINING):
        try:
            if reverse_path.is_asked():  # another program's rules would drop each answer
                raise NetlinkError(errno.EOPNOTSUPP, text="rules ask for the way back by IPv6")
            return _mend_pair() + _mend_table()
        except NetlinkError as error:
            if error.errno not in UNABLE:
                raise
            logger.info(
                "the host does not reach containers from ::1, as the kernel says: %s", error
            )
            _remove()
            return None


def _are_right(there: dict[int, Present]) -> bool:
    return len(there) == 2 and all(one.alias == _ALIAS and one.is_up for one in there.values())


def _mend_pair() -> tuple[str, ...]:
    host = NetlinkSocket(NETLINK_ROUTE)
    try:
        there = attached.look(host, [_INDEX, _INDEX + 1])
        for one in there.values():
            if one.alias not in (_ALIAS, ""):
                raise NetlinkError(errno.EINVAL, text=f"interface {one.ifindex} is {one.name}")
        wrong: tuple[str, ...] = ()
        settings = rtnetlink.NO_LINK_LOCAL + text(rtnetlink.ALIAS, _ALIAS)
        if not _are_right(there):
            requests = [
                *[rtnetlink.set_link(index, settings) for index in (_INDEX, _INDEX + 1)],
                *[rtnetlink.set_up(index) for index in (_INDEX, _INDEX + 1)],
                (rtnetlink.GET_LINK, 0, rtnetlink.get_link(_INDEX)),
                (rtnetlink.GET_LINK, 0, rtnetlink.get_link(_INDEX + 1)),
            ]
            if not there:
                mac = attribute(rtnetlink.MAC, _MAC)
                pair = rtnetlink.create_pair(_INDEX, _NAME, b"", f"{_NAME}p", mac, _INDEX + 1)
                requests.insert(0, pair)
            _make(host, requests)
            wrong = ("there was no way of answers to ::1",)
        made = _make(
            host,
            [
                rtnetlink.host_route(_INDEX, V6.af, ANSWERS.packed, None),
                rtnetlink.add_neighbour(_INDEX, V6.af, ANSWERS.packed, _MAC),
            ],
        )
        if (loopback_route.add_route(host, _INDEX + 1) or made) and not wrong:
            wrong = ("a route of answers to ::1 was missing",)
    finally:
        host.close()
    return wrong


def _make(host: NetlinkSocket, requests: list[Request]) -> bool:
    """Whether the first of them was not there before."""
    outcomes = host.outcomes(requests)
    for failure in filter(None, outcomes):
        if failure.errno != errno.EEXIST:
            raise failure
    return outcomes[0] is None


def _mend_table() -> tuple[str, ...]:
    if _is_table_whole():
        return ()
    _remove_table()
    netlink = NetlinkSocket(NETLINK_NETFILTER)
    try:
        nf_tables.send(netlink, _steps())
    finally:
        netlink.close()
    return (f"table {TABLE} was not whole",)


def _steps() -> list[Step]:
    is_six = nf_tables.meta_is(nf_tables.NFPROTO, bytes((V6.af,)))
    from_container = nf_tables.meta_is_in(nf_tables.IIFGROUP, _MASK, _GROUPS)
    comes_out = nf_tables.meta_is(nf_tables.IIFNAME, f"{_NAME}p\0".encode())
    return [
        nf_tables.table(INET, TABLE),
        nf_tables.base_chain(INET, TABLE, "answers", _PREROUTING, priority=_RAW),
        nf_tables.rule(
            *(INET, TABLE, "answers"),
            [*is_six, *from_container, *nf_tables.goes_to(ANSWERS.packed), nf_tables.notrack()],
        ),
        nf_tables.base_chain(INET, TABLE, "strangers", _PREROUTING),
        nf_tables.rule(
            *(INET, TABLE, "strangers"),
            [
                *(*comes_out, *is_six),
                *nf_tables.goes_to(bytes(15) + b"\1", otherwise=True),
                nf_tables.drop(),
            ],
        ),
    ]


def _is_table_whole() -> bool:
    netlink = NetlinkSocket(NETLINK_NETFILTER)
    try:
        if not nf_tables.is_awake(netlink, INET, TABLE):
            return False
        for chain in ("answers", "strangers"):
            rules, _ = netlink.dump(nf_tables.GET_RULE, nf_tables.rules_of(INET, TABLE, chain))
            if len(rules) != 1:
                return False
    except NetlinkError as error:
        if error.errno not in UNABLE:
            raise
        return False
    finally:
        netlink.close()
    return True


def _remove() -> None:
    host = NetlinkSocket(NETLINK_ROUTE)
    try:
        there = attached.look(host, [_INDEX]).get(_INDEX)
        if there is not None and there.alias == _ALIAS:
            for failure in filter(None, host.outcomes([rtnetlink.delete_link(_INDEX)])):
                if failure.errno not in _GONE:
                    raise failure
    finally:
        host.close()
    _remove_table()


def _remove_table() -> None:
    try:
        netlink = NetlinkSocket(NETLINK_NETFILTER)
    except NetlinkError:
        return  # then there is no table
    try:
        named = nf_tables.table_named(INET, TABLE)
        nf_tables.send(netlink, [Step(nf_tables.DELETE_TABLE, 0, named)])
    except NetlinkError as error:
        if error.errno not in UNABLE:
            raise
    finally:
        netlink.close()

"""Whether another program's rules ask of IPv6 by which interface the way back to a packet leads.

The kernel has no such setting for IPv6. firewalld has a rule for it by default (IPv6_rpfilter),
and so have some rule sets of ip6tables. A container behind its network's way (network_way) sends
by another interface than the one that the route to it names, so that all would be dropped.
"""

import errno
from collections.abc import Iterator
from typing import Final

from netalloc.host import nf_tables
from netalloc.host.netlink import NETLINK_NETFILTER, NetlinkError, NetlinkSocket
from netalloc.host.netlink_messages import attribute, attributes, text

_IP6: Final = b"\x0a\0\0\0"
_PLACES: Final = (
    *((nf_tables.INET, "firewalld", f"{kind}_PREROUTING") for kind in ("filter", "mangle", "raw")),
    *((_IP6, "firewalld", f"{kind}_PREROUTING") for kind in ("filter", "mangle", "raw")),
    *((_IP6, kind, "PREROUTING") for kind in ("mangle", "raw")),
)
_EXPRESSIONS, _NAME, _DATA, _FLAGS = 4, 1, 2, 3
_SADDR_BY_IIF = 1 | 8  # NFTA_FIB_F_SADDR, NFTA_FIB_F_IIF
_MATCH = text(1, "rpfilter")  # of ip6tables
_GONE = (errno.ENOENT, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT)


def is_asked() -> bool:
    """Look where such rules stand; 0.1 ms. Those of ip6tables-legacy are not seen."""
    try:
        netlink = NetlinkSocket(NETLINK_NETFILTER)
    except NetlinkError:
        return False
    try:
        return any(_asks(rule) for place in _PLACES for rule in _rules(netlink, *place))
    finally:
        netlink.close()


def _rules(netlink: NetlinkSocket, family: bytes, table: str, chain: str) -> list[bytes]:
    try:
        bodies, _ = netlink.dump(nf_tables.GET_RULE, nf_tables.rules_of(family, table, chain))
    except NetlinkError as error:
        if error.errno not in _GONE:
            raise
        return []
    return [attributes(body, 4).get(_EXPRESSIONS, b"") for body in bodies]


def _asks(rule: bytes) -> bool:
    if _MATCH in rule:
        return True
    return any(
        int.from_bytes(parts.get(_FLAGS, b""), "big") & _SADDR_BY_IIF == _SADDR_BY_IIF
        for parts in _lookups(rule)
    )


def _lookups(rule: bytes) -> Iterator[dict[int, bytes]]:
    """What the rule looks up among the routes."""
    start, head = 0, attribute(_NAME, b"fib\0")
    while (start := rule.find(head, start)) >= 0:
        start += len(head)
        size = int.from_bytes(rule[start : start + 2], "little")
        yield attributes(rule, start + 4, start + size)

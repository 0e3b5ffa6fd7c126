"""The fixed part of the nftables backend: its text, and what of it the kernel has."""

import errno
import re
from typing import Final

from netalloc.errors import InUseError, OutOfRangeError
from netalloc.family import UNIQUE_LOCAL, V4, V6
from netalloc.host.loopback_guard import MARK
from netalloc.host.loopback_way import ANSWERS
from netalloc.host.netlink import NetlinkError, NetlinkSocket
from netalloc.host.netlink_messages import attributes, text
from netalloc.portmap.nftables.batch import SUBSYSTEM, Step
from netalloc.portmap.nftables.elements import INET
from netalloc.portmap.nftables.maps import MAP_TYPES
from netalloc.portmap.nftables.members import DECLARATIONS, GATEWAYS, LOOPBACK6, ROUTED

GET_TABLE, GET_CHAIN, GET_RULE, GET_SET = (SUBSYSTEM | kind for kind in (1, 4, 7, 10))
_DELETE_TABLE: Final = SUBSYSTEM | 2

# Tables of other programs: sharing one would put our chains under their flush.
TAKEN: Final = frozenset(
    (
        *("filter", "nat", "mangle", "raw", "security"),
        *("docker-bridges", "netavark", "cni_hostport", "cni_plugins_masquerade"),
        *("kube-proxy", "firewalld", "v2-host-firewall", "calico"),
    )
)

FINGERPRINT: Final = "fingerprint"  # the set that fingerprint.py writes

# The first nat chain that decides wins: -105 comes before the -100 of iptables, which is
# where a stale rule of another program for the same port would be.
_BASE_CHAINS: Final = {
    "prerouting": "type nat hook prerouting priority -105; policy accept;",
    "output": "type nat hook output priority -105; policy accept;",
    "postrouting": "type nat hook postrouting priority srcnat; policy accept;",
    "refused": "type filter hook output priority filter; policy accept;",
    "guard": "type filter hook prerouting priority raw; policy accept;",
    "answers": "type filter hook prerouting priority mangle; policy accept;",
}

# What of each answer is the fixed part; the rest is handles, counters and use counts.
# Table: flags. Chain: hook, policy, type, flags. Set: flags, key and data types, lengths.
_TABLE_PARTS, _CHAIN_PARTS, _SET_PARTS = (2,), (4, 5, 7, 10), (3, 4, 5, 6, 7)
_NAME, _SET_NAME, _RULE_CHAIN, _RULE_EXPRESSIONS = 1, 2, 2, 4


def check_table(name: str) -> str:
    """The name itself; OutOfRangeError when nft could not read it, InUseError when it is taken."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]{0,27}", name):
        raise OutOfRangeError(
            f"table name {name!r} is not a letter and up to 27 letters, digits, '_', '.' or '-'"
        )
    if name in TAKEN:
        raise InUseError(f"nftables table {name} belongs to another program", name)
    return name


# Which bridges and networks the rules serve stands in sets: a packet passes as many with 1 and
# with 100 of them. What is cheap and decides most comes first in each.
_GUARDED = ("iif @bridges drop", f"iifgroup @{ROUTED} drop")
# What comes through a host port to a routed container comes from its gateway: to look for an
# address of the host's, as masquerade does, goes through all its interfaces, of which there
# are as many as containers (half a millisecond for IPv6 with 10,000).
_TO_GATEWAY = {f: f"snat {f.word} to oifgroup map @{GATEWAYS[f]}" for f in (V4, V6)}
RULES: Final = {
    "portmap": [
        # Without it a container's connection to an outside server on a mapped port
        # would be hijacked.
        "fib daddr type != local return",
        "dnat ip to ip daddr . meta l4proto . th dport map @dnat_ip",
        "dnat ip to ip daddr . meta l4proto . th dport map @block_ip",
        "meta nfproto ipv4 dnat ip to meta l4proto . th dport map @dnat_any",
        "meta nfproto ipv4 dnat ip to meta l4proto . th dport map @block_any",
        "dnat ip6 to ip6 daddr . meta l4proto . th dport map @dnat_ip6",
        "dnat ip6 to ip6 daddr . meta l4proto . th dport map @block_ip6",
        "meta nfproto ipv6 dnat ip6 to meta l4proto . th dport map @dnat_any6",
        "meta nfproto ipv6 dnat ip6 to meta l4proto . th dport map @block_any6",
    ],
    "prerouting": ["jump portmap"],
    "output": ["jump portmap"],
    "postrouting": [
        "ip saddr 127.0.0.0/8 oif @bridges ct status dnat masquerade",
        f"ip saddr 127.0.0.0/8 ct status dnat {_TO_GATEWAY[V4]}",
        f"ip saddr 127.0.0.0/8 oifgroup @{ROUTED} ct status dnat masquerade",  # it has no gateway
        "meta nfproto . ip saddr @subnets jump leaving",
        "ip6 saddr ::1 oif @bridges ct status dnat masquerade",
        f"ip6 saddr ::1 oifgroup @{ROUTED} ct status dnat snat ip6 to {ANSWERS}",
        "meta nfproto . ip6 saddr @subnets6 jump leaving6",
    ],
    "leaving": [
        # What comes back through a host port, to a container of its own or another network; all
        # else to the outside and to other bridges, but not to routed containers.
        f"meta nfproto ipv4 ct status dnat {_TO_GATEWAY[V4]}",
        "meta nfproto ipv4 ct status dnat masquerade",
        f"oifgroup @{ROUTED} return",
        "oifname . ip saddr != @networks masquerade",
    ],
    "leaving6": [
        # The same for unique local addresses alone (RFC 4193): others are routed.
        f"meta nfproto ipv6 ct status dnat {_TO_GATEWAY[V6]}",
        "meta nfproto ipv6 ct status dnat masquerade",
        f"oifgroup @{ROUTED} return",
        f"ip6 saddr {UNIQUE_LOCAL} oifname . ip6 saddr != @networks6 masquerade",
    ],
    # Without the route that netalloc.host.loopback_route makes, answers to ::1 are lost: what is
    # refused at once is not waited for, and what asks for "localhost" goes on to 127.0.0.1.
    "refused": [
        f"ip6 saddr ::1 ct status dnat ip6 daddr != ::1 meta nfproto . ip6 daddr != @{LOOPBACK6} "
        f"{verdict}"
        for verdict in ("meta l4proto tcp reject with tcp reset", "reject")
    ],
    # route_localnet on the interface lets the host reach its containers from 127.0.0.1; the guard
    # keeps the containers away from what listens there, also by UDP that says it comes from
    # there.
    "guard": [f"ip {end} 127.0.0.0/8 {what}" for end in ("daddr", "saddr") for what in _GUARDED],
    # Bridged frames are translated before they come to the guard at the bridge.
    "answers": [
        f"ct direction reply ct original ip daddr 127.0.0.0/8 iif @bridges meta mark set {MARK:#x}"
    ],
}


def script(name: str, *, replace: bool = False) -> str:
    """What `nft -f` loads: one transaction that leaves the elements of an existing table alone.

    With `replace` the table goes first, and its elements with it.
    """
    lines = [f"table inet {name}", f"delete table inet {name}"] if replace else []
    lines.append(f"table inet {name} {{")
    lines += [f"  map {map_.name} {{ {map_.declaration} }}" for map_ in MAP_TYPES.values()]
    for set_, declaration in DECLARATIONS.items():
        kind = "map" if " : " in declaration else "set"
        lines.append(f"  {kind} {set_} {{ {declaration} }}")
    lines.append(f"  set {FINGERPRINT} {{ type mark; }}")
    lines += [f"  chain {chain} {{ {_BASE_CHAINS.get(chain, '')} }}" for chain in RULES]
    lines.append("}")
    lines += [f"flush chain inet {name} {chain}" for chain in RULES]
    lines += [f"add rule inet {name} {chain} {rule}" for chain in RULES for rule in RULES[chain]]
    return "\n".join(lines) + "\n"


def table_deletion(name: str, family: bytes = INET) -> Step:
    """The step that removes the table with all that is in it."""
    return Step(_DELETE_TABLE, 0, family + text(_NAME, name))


Snapshot = dict[str, tuple[bytes, ...]]


def snapshot(netlink: NetlinkSocket, name: str) -> Snapshot:
    """The fixed part as the kernel has it; what is missing has no entry.

    A key is "table", "map NAME", "chain NAME" or "rules NAME". It asks by name, so that
    its cost does not depend on the tables of others or on the number of elements.
    """
    found: Snapshot = {}
    table = INET + text(_NAME, name)
    _one(netlink, found, "table", GET_TABLE, table, _TABLE_PARTS)
    if not found:
        return found
    found |= _sets(netlink, name)
    for chain in RULES:
        _one(netlink, found, f"chain {chain}", GET_CHAIN, table + text(3, chain), _CHAIN_PARTS)
    held: dict[str, list[bytes]] = {chain: [] for chain in RULES if f"chain {chain}" in found}
    for body in netlink.dump(GET_RULE, table)[0]:
        parts = attributes(body, 4)
        chain = parts.get(_RULE_CHAIN, b"").rstrip(b"\0").decode()
        if parts.get(_NAME, b"").rstrip(b"\0").decode() == name and chain in held:
            held[chain].append(parts.get(_RULE_EXPRESSIONS, b""))
    found.update((f"rules {chain}", tuple(expressions)) for chain, expressions in held.items())
    return found


def _sets(netlink: NetlinkSocket, name: str) -> Snapshot:
    """Our maps and sets, listed at once: a fifth of the time of a question for each."""
    found: Snapshot = {}
    try:
        bodies, _ = netlink.dump(GET_SET, INET + text(_NAME, name))
    except NetlinkError as error:
        if error.errno != errno.ENOENT:
            raise
        return found
    for body in bodies:
        parts = attributes(body, 4)
        set_ = parts.get(_SET_NAME, b"").rstrip(b"\0").decode()
        kind = "map" if set_ in MAP_TYPES else "set" if set_ in DECLARATIONS else None
        if kind is not None and parts.get(_NAME, b"").rstrip(b"\0").decode() == name:
            found[f"{kind} {set_}"] = tuple(parts.get(part, b"") for part in _SET_PARTS)
    return found


def has_table(netlink: NetlinkSocket, name: str) -> bool:
    """Whether there is a table of this name."""
    found: Snapshot = {}
    _one(netlink, found, "table", GET_TABLE, INET + text(_NAME, name), ())
    return bool(found)


def is_ours(netlink: NetlinkSocket, name: str, family: bytes = INET) -> bool:
    """Whether there is a table of this name that looks like one of ours."""
    found: Snapshot = {}
    table = family + text(_NAME, name)
    _one(netlink, found, "chain", GET_CHAIN, table + text(3, "portmap"), ())
    if found:
        _one(netlink, found, "set", GET_SET, table + text(2, FINGERPRINT), ())
    return len(found) == 2


def _one(
    netlink: NetlinkSocket,
    found: Snapshot,
    what: str,
    kind: int,
    body: bytes,
    wanted: tuple[int, ...],
) -> None:
    try:
        answers = netlink.call(kind, body)
    except NetlinkError as error:
        if error.errno != errno.ENOENT:  # it is missing, which is an answer
            raise
        return
    parts = attributes(answers[0], 4)
    found[what] = tuple(parts.get(part, b"") for part in wanted)


def differences(before: Snapshot, after: Snapshot, name: str) -> tuple[str, ...]:
    """What was wrong with `before`, in words."""
    if not before:
        return (f"table inet {name} was missing",)
    found: list[str] = []
    for what, right in after.items():
        was = before.get(what)
        if was == right:
            continue
        kind, _, chain = what.partition(" ")
        if was is None:
            if kind != "rules":  # of a missing chain
                found.append(f"{what} was missing")
        elif kind != "rules":
            found.append(f"{what} had other properties")
        elif strangers := sum(rule not in right for rule in was):
            found.append(f"chain {chain} had {strangers} rules that are not ours")
        else:
            found.append(f"chain {chain} had {len(was)} of its {len(right)} rules, or out of order")
    return tuple(found)

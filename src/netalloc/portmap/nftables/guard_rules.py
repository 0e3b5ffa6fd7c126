"""The fixed part of the guard: two tables that are there while some network is guarded.

Table `inet` guards what is routed and the host itself, table `bridge` what goes from port to
port. They are apart from the table of the mappings, so that a packet of a host without a guarded
network passes none of it. Whom the rules are about stands in sets, most by hash: a packet costs
the same with 1 and with 10,000 containers, and an element changes in 10 µs.

A container is what its interface says: on a bridge the index, which no other interface ever
has, its MAC address and its addresses have to agree in every frame, in ARP and in neighbour
advertisements as well. It asks only the gateway, and whom it is allowed, for a MAC address,
and what it asks is turned to them alone. So nothing that it sends goes to all ports.
"""

from typing import Final

from netalloc.family import V4, V6
from netalloc.host.loopback_guard import MARK as LOOPBACK_MARK

GUARD: Final = "netalloc-guard"
INET, BRIDGE = "inet", "bridge"

# With bridge-nf-call-iptables=1 frames from port to port pass the chains of both tables. By this
# each says to the other what it lets pass: a frame of the host's own translation, or a neighbour
# solicitation, which has its target in no address. No container can set a mark.
MARK: Final = 0x6E670000
_ALL_GROUPS: Final = "& 0xff800000 == 0x6e000000"  # those that ipam.attachments gives

GROUPS, BRIDGES, OURS = "guarded_groups", "guarded_bridges", "all_bridges"
GROUP_SERVICES, BRIDGE_SERVICES = "group_services", "bridge_services"
ALLOW, ALLOW6, PAIRS6 = "allow", "allow6", "pairs6"
PORTS, SOURCES, SOURCES6, TARGETS6 = "ports", "sources", "sources6", "targets6"
ROUTED6 = "routed6"
GATEWAYS, GATEWAYS6, MACS, MACS6 = "gateways", "gateways6", "macs", "macs6"

# Those that change with containers, not with networks.
CHANGING: Final = (ALLOW, ALLOW6, PAIRS6, PORTS, SOURCES, SOURCES6, TARGETS6, MACS, MACS6, ROUTED6)

_TARGET: Final = "@th,64,128"  # of a neighbour solicitation or advertisement
_FROM = "iif . ether saddr"
_V4, _V6 = V4.address_type, V6.address_type

# Of each table: its sets and maps.
SETS: Final = {
    INET: {
        GROUPS: "set: type devgroup;",
        BRIDGES: "set: type iface_index;",
        OURS: "set: type iface_index;",
        GROUP_SERVICES: "set: type devgroup . inet_proto . inet_service;",
        BRIDGE_SERVICES: "set: type iface_index . inet_proto . inet_service;",
        ALLOW: f"set: type {_V4} . {_V4};",
        ALLOW6: f"set: type {_V6} . {_V6};",
        ROUTED6: f"set: type iface_index . {_V6};",
    },
    BRIDGE: {
        PORTS: "set: type iface_index;",
        SOURCES: f"set: type iface_index . ether_addr . {_V4};",
        SOURCES6: f"set: type iface_index . ether_addr . {_V6};",
        TARGETS6: f"set: typeof {_FROM} . {_TARGET};",
        GATEWAYS: f"map: type {_V4} : ether_addr;",
        GATEWAYS6: f"map: typeof {_TARGET} : ether daddr;",
        MACS: f"map: type {_V4} : ether_addr;",
        MACS6: f"map: typeof {_TARGET} : ether daddr;",
        ALLOW: f"set: type {_V4} . {_V4};",
        ALLOW6: f"set: type {_V6} . {_V6};",
        PAIRS6: f"set: typeof ip6 saddr . {_TARGET};",
    },
}

_BASE: Final = {
    INET: {
        "spoofed": "type filter hook prerouting priority raw; policy accept;",
        "marked": "type filter hook prerouting priority filter; policy accept;",
        "forward": "type filter hook forward priority filter; policy accept;",
        "input": "type filter hook input priority filter; policy accept;",
    },
    BRIDGE: {
        "prerouting": "type filter hook prerouting priority -300; policy accept;",
        "forward": "type filter hook forward priority filter; policy accept;",
    },
}

_ARP_IS_OWN: Final = (
    f"iif . arp saddr ether . arp saddr ip @{SOURCES} {_FROM} . arp saddr ip @{SOURCES}"
)
_NS: Final = f"icmpv6 type nd-neighbor-solicit {_FROM} . ip6 saddr @{SOURCES6}"

# Chains that others go to stand before those.
RULES: Final = {
    INET: {
        "from_guarded": [
            "ct status dnat accept",
            f"ip saddr . ip daddr @{ALLOW} accept",
            f"ip6 saddr . ip6 daddr @{ALLOW6} accept",
            f"meta mark {MARK:#x} accept",
            f"oifgroup {_ALL_GROUPS} drop",
            f"oif @{OURS} drop",
        ],
        "to_guarded": [
            "ct status dnat accept",
            f"iifgroup {_ALL_GROUPS} drop",
            f"iif @{OURS} drop",
        ],
        "to_host": [
            (
                "icmp type { echo-request, destination-unreachable, time-exceeded,"
                " parameter-problem } accept"
            ),
            (
                "icmpv6 type { echo-request, destination-unreachable, packet-too-big,"
                " time-exceeded, parameter-problem, nd-neighbor-solicit, nd-neighbor-advert }"
                " accept"
            ),
            f"iifgroup . meta l4proto . th dport @{GROUP_SERVICES} accept",
            f"iif . meta l4proto . th dport @{BRIDGE_SERVICES} accept",
            "drop",
        ],
        # A link-local address is every container's, so it says nothing of who sends. The way back
        # over IPv6 is the network's, not the container's own.
        "spoofed": [
            f"iifgroup @{GROUPS} ip6 saddr fe80::/10 drop",
            f"iifgroup @{GROUPS} iif . ip6 saddr != @{ROUTED6} drop",
            f"iifgroup @{GROUPS} meta nfproto ipv4 fib saddr . iif oif missing drop",
        ],
        "marked": [
            (
                f"iif @{BRIDGES} ct status dnat meta mark != {LOOPBACK_MARK:#x}"
                f" meta mark set {MARK:#x}"
            )
        ],
        "forward": [
            "ct state established,related accept",
            f"iifgroup @{GROUPS} goto from_guarded",
            f"iif @{BRIDGES} goto from_guarded",
            f"oifgroup @{GROUPS} goto to_guarded",
            f"oif @{BRIDGES} goto to_guarded",
        ],
        "input": [
            "ct state established,related accept",
            f"iifgroup @{GROUPS} goto to_host",
            f"iif @{BRIDGES} goto to_host",
        ],
    },
    BRIDGE: {
        "to_all": [
            f"{_ARP_IS_OWN} ether daddr set arp daddr ip map @{GATEWAYS} accept",
            (
                f"{_ARP_IS_OWN} arp saddr ip . arp daddr ip @{ALLOW}"
                f" ether daddr set arp daddr ip map @{MACS} accept"
            ),
            f"{_NS} ether daddr set {_TARGET} map @{GATEWAYS6} accept",
            f"{_NS} ip6 saddr . {_TARGET} @{PAIRS6} ether daddr set {_TARGET} map @{MACS6} accept",
            "drop",
        ],
        "from_port": [
            "ether daddr & 01:00:00:00:00:00 == 01:00:00:00:00:00 goto to_all",
            f"{_FROM} . ip saddr @{SOURCES} accept",
            "icmpv6 type { nd-router-advert, nd-redirect } drop",
            f"icmpv6 type nd-neighbor-advert {_FROM} . {_TARGET} != @{TARGETS6} drop",
            f"{_FROM} . ip6 saddr @{SOURCES6} accept",
            f"{_ARP_IS_OWN} accept",
            "drop",
        ],
        # To whom a frame is addressed has to agree as well, so that none gets another's.
        "between": [
            f"meta mark {MARK:#x} accept",
            f"ip saddr . ip daddr @{ALLOW} oif . ether daddr . ip daddr @{SOURCES} accept",
            (
                f"arp saddr ip . arp daddr ip @{ALLOW}"
                f" oif . ether daddr . arp daddr ip @{SOURCES} accept"
            ),
            (
                f"{_NS.partition(' iif')[0]} ip6 saddr . {_TARGET} @{PAIRS6}"
                f" oif . ether daddr . {_TARGET} @{TARGETS6} meta mark set {MARK:#x} accept"
            ),
            f"ip6 saddr . ip6 daddr @{ALLOW6} oif . ether daddr . ip6 daddr @{SOURCES6} accept",
            "drop",
        ],
        "prerouting": [f"iif @{PORTS} goto from_port"],
        "forward": [
            f"iif @{PORTS} goto between",
            f"oif @{PORTS} goto between",
        ],
    },
}


def script(*, replace: bool = False) -> str:
    """What `nft -f` loads: one transaction that leaves the elements of existing tables alone.

    With `replace` the tables go first, and their elements with them.
    """
    lines: list[str] = []
    for family, sets in SETS.items():
        if replace:
            lines += [f"table {family} {GUARD}", f"delete table {family} {GUARD}"]
        lines.append(f"table {family} {GUARD} {{")
        for name, declaration in sets.items():
            kind, _, said = declaration.partition(": ")
            lines.append(f"  {kind} {name} {{ {said} }}")
        if family == INET:
            lines.append("  set fingerprint { type mark; }")
        chains, base = RULES[family], _BASE[family]
        lines += [f"  chain {chain} {{ {base.get(chain, '')} }}" for chain in chains]
        lines.append("}")
        lines += [f"flush chain {family} {GUARD} {chain}" for chain in chains]
        for chain, rules in chains.items():
            lines += [f"add rule {family} {GUARD} {chain} {rule}" for rule in rules]
    return "\n".join(lines) + "\n"

"""Mappings as iptables rules, and which chain each belongs to. Text only, no I/O.

Every rule is written exactly as iptables-save prints it, so that comparing with the kernel
is comparing strings. A chain of 16,000 rules makes a new connection 15 times as slow, so
the mappings hang in a tree by port: the main chain leads to groups of 1024 ports, a group
to leaves of 64. Through 16,384 mappings a packet then passes 16 + 16 + 64 rules at most.

    -A netalloc     -p tcp -m tcp --dport 7168:8191 -j netalloc/T07
    -A netalloc/T07 -p tcp -m tcp --dport 8064:8127 -j netalloc/t3u
    -A netalloc/t3u -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.0.0.2:80

A group is called by its protocol's capital and its number in base 32, a leaf by the small
letter; no other chain of ours can be called so, because a name cannot have a slash. The
chains of ip6tables are called just as those of iptables are.
"""

import re
from collections.abc import Callable, Container, Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import pairwise
from socket import inet_aton, inet_ntoa, inet_ntop, inet_pton
from typing import NamedTuple

from netalloc.errors import InUseError, OutOfRangeError
from netalloc.family import UNIQUE_LOCAL, V4, V6, Family
from netalloc.host.loopback_guard import MARK
from netalloc.host.loopback_way import ANSWERS
from netalloc.model import PortMapping
from netalloc.portmap.link import Link

MAX_NAME = 28  # XT_EXTENSION_MAXNAMELEN in linux/netfilter/x_tables.h, less the final zero
MAX_COMMENT = 255  # XT_MAX_COMMENT_LEN in linux/netfilter/xt_comment.h, likewise
GROUP_BITS, LEAF_BITS = 10, 6
DNAT = "-j DNAT --to-destination"
_GROUPS, _GROUPS_MASK = 0x6E000000, 0xFF800000  # of all routed networks: see ipam.attachments
_DIGITS = "0123456789abcdefghijklmnopqrstuv"
_SUFFIX = "/(?:nat|fwd|[TUStus][0-9a-v]{2})"
_LONGEST_SUFFIX = 4

# Chains that other programs make and flush as theirs; DOCKER itself only while Docker runs.
_TAKEN = re.compile(
    r"(DOCKER-|CNI-|NETAVARK|KUBE-|cali-|FLANNEL)|"
    r"(PREROUTING|INPUT|FORWARD|OUTPUT|POSTROUTING|ACCEPT|DROP|RETURN|QUEUE|REJECT|LOG|MARK|"
    r"DNAT|SNAT|MASQUERADE|REDIRECT)$"
)


def _mapping(ip: str, bits: int, before: str = "", behind: str = "") -> "re.Pattern[str]":
    return re.compile(
        rf"(?:-d (?P<host>{ip})/{bits} )?-p (?P<protocol>tcp|udp|sctp) -m (?P=protocol) "
        r"--dport (?P<first>\d+)(?::(?P<last>\d+))? "
        r'(?:-m comment --comment (?P<owner>[\w-]+|"(?:[^"\\]|\\.)*") )?'
        rf"-j DNAT --to-destination {before}(?P<ip>{ip})"
        rf"(?:{behind}:(?P<port>\d+)(?:-(?P<end>\d+)/(?P<base>\d+))?)?"
    )


_MAPPING = {
    4: _mapping(r"[\d.]+", 32),
    6: _mapping(r"[\da-f:.]+", 128, r"(?:\[(?=\S+\]:))?", r"\]"),  # brackets before a port alone
}

IPNetwork = IPv4Network | IPv6Network
Rules = dict[str, list[str]]


def check_name(name: str) -> str:
    """The name itself, when chains can be called after it.

    Raises OutOfRangeError when it is too long or no chain name, InUseError when it is one
    that the kernel or another program uses.
    """
    limit = MAX_NAME - _LONGEST_SUFFIX
    if len(name) > limit:
        raise OutOfRangeError(
            f"name {name!r} has {len(name)} characters: {limit} is the most, because chains "
            f"are called {name[:8]}.../t3u and their names end at {MAX_NAME}"
        )
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.:@-]*", name):
        raise OutOfRangeError(f"chains cannot be called {name!r}")
    if _TAKEN.match(name):
        raise InUseError(f"chain name {name} is taken by another program", name)
    return name


def is_ours(chain: str, name: str) -> bool:
    """Whether a chain is one that this module names after `name`."""
    return chain.startswith(name) and bool(re.fullmatch(f"(?:{_SUFFIX})?", chain[len(name) :]))


def chain_path(mapping: PortMapping, name: str) -> list[str]:
    """The chains from the main one to the one that holds the mapping's rule.

    A block stays in the smallest chain that covers all of its ports, so it is one rule.
    """
    first, last = mapping.host_port, mapping.host_port + mapping.count - 1
    chains = [name]
    group, leaf = first >> GROUP_BITS, first >> LEAF_BITS
    if group == last >> GROUP_BITS:
        chains.append(f"{name}/{mapping.protocol[0].upper()}{_number(group)}")
        if leaf == last >> LEAF_BITS:
            chains.append(f"{name}/{mapping.protocol[0]}{_number(leaf)}")
    return chains


def _number(n: int) -> str:
    return _DIGITS[n >> 5] + _DIGITS[n & 31]


def jump(chain: str) -> str:
    """The rule in the parent of a group or leaf that leads to it."""
    suffix = chain.rpartition("/")[2]
    protocol = {"t": "tcp", "u": "udp", "s": "sctp"}[suffix[0].lower()]
    bits = GROUP_BITS if suffix[0].isupper() else LEAF_BITS
    first = int(suffix[1:], 32) << bits
    # Port 0 is no port, and the two iptables print a range from 0 differently.
    ports = f"{max(first, 1)}:{first + (1 << bits) - 1}"
    return f"-p {protocol} -m {protocol} --dport {ports} -j {chain}"


def in_tree(chain: str, name: str) -> bool:
    """Whether a chain is a group or a leaf."""
    return re.fullmatch(re.escape(name) + "/[TUStus][0-9a-v]{2}", chain) is not None


def is_jump(rule: str, name: str) -> bool:
    """Whether a rule is one that leads from chain to chain within the tree."""
    target = rule.rpartition(" -j ")[2]
    return in_tree(target, name) and rule == jump(target)


def leaf_chain(
    mapping: PortMapping, name: str, existing: Container[str], make: Callable[[str, str], None]
) -> str:
    """The chain for a mapping's rule, after `make(above, chain)` for chains that are missing.

    `make` puts the chain into `existing`.
    """
    path = chain_path(mapping, name)
    for above, chain in pairwise(path):
        if chain not in existing:
            make(above, chain)
    return path[-1]


def add_mappings(nat: Rules, mappings: Iterable[PortMapping], name: str) -> None:
    """Add the rules of all mappings, and the chains they need, to the rules of table nat."""

    def make(above: str, chain: str) -> None:
        nat[chain] = []
        nat[above].append(jump(chain))

    # A thousand mappings share a few leaves: looking these up is a fourth of the work.
    leaves: dict[tuple[str, int], list[str]] = {}
    for mapping in mappings:
        leaf = mapping.protocol, mapping.host_port >> LEAF_BITS
        rules = leaves.get(leaf) if mapping.count == 1 else None
        if rules is None:
            rules = nat[leaf_chain(mapping, name, nat, make)]
            if mapping.count == 1:
                leaves[leaf] = rules
        rules.append(rule(mapping))


def parent(chain: str) -> str:
    """The chain that leads to a group or leaf."""
    name, _, suffix = chain.rpartition("/")
    if suffix[0].isupper():
        return name
    return f"{name}/{suffix[0].upper()}{_number(int(suffix[1:], 32) >> GROUP_BITS - LEAF_BITS)}"


def rule(mapping: PortMapping) -> str:
    """The rule of a mapping, without its chain.

    >>> rule(PortMapping(8080, ("10.0.0.2", 80)))
    '-p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.0.0.2:80'
    >>> rule(PortMapping(7000, ("10.0.0.2", 7000), "udp", count=100))
    '-p udp -m udp --dport 7000:7099 -j DNAT --to-destination 10.0.0.2'
    >>> rule(PortMapping(7000, ("fd00::2", 80), count=10))
    '-p tcp -m tcp --dport 7000:7009 -j DNAT --to-destination [fd00::2]:80-89/7000'
    """
    protocol, port = mapping.protocol, mapping.host_port
    at = mapping.host_ip
    host = f"-d {written(at)}/{at.max_prefixlen} " if at is not None else ""
    owner = f"-m comment --comment {quoted(_comment(mapping.owner))} " if mapping.owner else ""
    ip, to = mapping.dest
    if mapping.count == 1:
        return f"{host}{match(protocol)} {port} {owner}{DNAT} {endpoint(ip)}:{to}"
    # Without a port DNAT keeps the one that was asked for; with a base it shifts it
    # (iptables 1.8 and Linux 4.18).
    where = written(ip)
    if mapping.shifted:
        where = f"{endpoint(ip)}:{to}-{to + mapping.count - 1}/{port}"
    return f"{host}{match(protocol)} {port}:{port + mapping.count - 1} {owner}{DNAT} {where}"


def written(ip: IPv4Address | IPv6Address) -> str:
    """An address as iptables-save prints it: inet_ntop's way, in a third of the time of str().

    >>> written(IPv6Address("::102:304"))
    '::1.2.3.4'
    """
    if isinstance(ip, IPv4Address):
        return inet_ntoa(int(ip).to_bytes(4, "big"))
    return inet_ntop(V6.af, ip.packed)


def endpoint(ip: IPv4Address | IPv6Address) -> str:
    """The same before a port: of IPv6 in brackets."""
    if isinstance(ip, IPv4Address):
        return inet_ntoa(int(ip).to_bytes(4, "big"))  # a call less: thousands are written at a time
    return f"[{inet_ntop(V6.af, ip.packed)}]"


def match(protocol: str) -> str:
    """What comes before the port in a rule."""
    return f"-p {protocol} -m {protocol} --dport"


def parse(text: str, family: Family = V4) -> PortMapping | None:
    """The mapping that a rule of a family makes, or None for one that `rule` does not write."""
    found = _MAPPING[family.version].fullmatch(text)
    if found is None:
        return None
    host, protocol, first, last, owner, ip, port, end, base = found.groups()
    if last is None:
        wrong = port is None or base is not None
    elif base is None:
        wrong = port is not None
    else:
        count = int(last) - int(first)
        wrong = base != first or port == first or int(end) - int(port) != count or count < 1
    if wrong:
        return None
    try:
        return PortMapping(
            int(first),
            (_address(ip, family), int(port or first)),
            protocol,
            _address(host, family) if host else None,
            int(last) - int(first) + 1 if last else 1,
            unquoted(owner) if owner else None,
        )
    except (ValueError, OSError):  # a port 0, say: not one of ours
        return None


def _address(text: str, family: Family) -> IPv4Address | IPv6Address:
    if family is V4:
        return IPv4Address(inet_aton(text))  # a fifth of the time of text
    return IPv6Address(inet_pton(V6.af, text))


class Way(NamedTuple):
    """How rules tell what goes to the containers of a link, and as whom it goes there.

    Routed, what comes through a host port comes from the gateway: MASQUERADE looks for an address
    on all interfaces, of which there are as many as containers (half a millisecond for IPv6 with
    10,000). For the same reason what goes to another routed network is not away.
    """

    to: str
    away: str
    source: str  # of what comes through a host port, or from loopback
    guarded: str  # where what is from or for 127.0.0.0/8 may not come in

    @classmethod
    def of(cls, link: Link, family: Family) -> "Way | None":
        """By the bridge, or by the group of the interfaces; None where there is neither."""
        if link.bridge is not None:
            return cls(f"-o {link.bridge} ", f"! -o {link.bridge} ", "-j MASQUERADE", "! -i lo")
        if not link.is_routed:
            return None
        group = f"{link.group:#x}"
        inside = f"{_GROUPS:#x}/{_GROUPS_MASK:#x}" if _is_networks(link.group) else group
        gateway = link.gateways[0 if family is V4 else 1]
        source = "-j MASQUERADE" if gateway is None else f"-j SNAT --to-source {written(gateway)}"
        return cls(
            f"-m devgroup --dst-group {group} ",
            f"-m devgroup ! --dst-group {inside} ",
            source,
            f"-m devgroup --src-group {group}",
        )


def _is_networks(group: int) -> bool:
    """Whether a group is one that a manager gives; a backend by itself may be given any."""
    return group & _GROUPS_MASK == _GROUPS


def fixed_rules(
    name: str,
    link: Link,
    network: IPNetwork | None,
    family: Family = V4,
    *,
    bridged: bool = False,
    loopback: bool = True,
) -> dict[str, Rules]:
    """The rules that do not depend on the mappings: by table, by chain.

    In a built-in chain only the named rules are ours. The first two let the host reach its
    containers from 127.0.0.1 and ::1, and the containers themselves and each other through a host
    port; the third is their way out. Where iptables sees `bridged` frames,
    it translates them before they come to the guard at the bridge, which asks for a mark then.
    Without a way for what comes from ::1 (`loopback`) connections to it are left alone: nothing
    answers them, and the kernel says so at once.
    """
    local = _jump_of_local(name)
    out: list[str] = []
    nat = {"PREROUTING": [local], "OUTPUT": [local], "POSTROUTING": [f"-j {name}/nat"]}
    if family is V6 and not loopback:
        nat["OUTPUT"] = [_jump_past_loopback(name)]
    nat |= {name: [], f"{name}/nat": out}
    dnat = "-m conntrack --ctstate DNAT"
    there = "" if network is None else _written_network(network)
    source = f"-s {there} " if network is not None and network.prefixlen else ""
    way_out = source if family is V4 else _private_source(network)
    way = Way.of(link, family)
    if way is not None and (family is V4 or link.bridge is not None):
        out.append(f"-s {family.loopback} {way.to}{dnat} {way.source}")
    elif way is not None and loopback:
        out.append(f"-s {family.loopback} {way.to}{dnat} -j SNAT --to-source {ANSWERS}")
    if network is not None and way is not None:
        out.append(f"{source}{way.to}{dnat} {way.source}")
        if way_out is not None:
            out.append(f"{way_out}{way.away}-j MASQUERADE")
    elif network is not None:
        out.append(f"{source}-d {there} {dnat} -j MASQUERADE")
        if way_out is not None:
            out.append(f"{way_out}! -d {there} -j MASQUERADE")
    if way is None or family is V6:
        return {"nat": nat}
    # route_localnet lets a container address the host's 127.0.0.0/8, and call itself so: this
    # stops it before conntrack, so that answers to the host's own connections pass. The kernel
    # itself drops what comes from a link and says that it is from or for ::1.
    guard = [f"-{end} {family.loopback} {way.guarded} -j DROP" for end in "ds"]
    raw = {"PREROUTING": [f"-j {name}"], name: guard}
    if not bridged:
        return {"raw": raw, "nat": nat}
    answers = (
        f"-i {link.bridge} -m conntrack --ctorigdst {family.loopback} --ctdir REPLY "
        f"-j MARK --set-xmark {MARK:#x}/0xffffffff"
    )
    mangle = {"PREROUTING": [f"-j {name}"], name: [answers]}
    return {"raw": raw, "mangle": mangle, "nat": nat}


def jumps(name: str, family: Family = V4) -> dict[str, Rules]:
    """All rules that may lead from built-in chains into ours: by table, by chain."""
    local = [_jump_of_local(name)]
    from_host = local if family is V4 else [*local, _jump_past_loopback(name)]
    always, forward = [f"-j {name}"], [f"-j {name}/fwd"]
    return {
        "nat": {"PREROUTING": local, "OUTPUT": from_host, "POSTROUTING": [f"-j {name}/nat"]},
        "mangle": {"PREROUTING": always},
        "raw": {"PREROUTING": always},
        "filter": {"FORWARD": forward, "DOCKER-USER": forward},
    }


def _jump_of_local(name: str) -> str:
    return f"-m addrtype --dst-type LOCAL -j {name}"


def _jump_past_loopback(name: str) -> str:
    return f"! -d {V6.loopback} {_jump_of_local(name)}"


def _written_network(network: IPNetwork) -> str:
    return f"{written(network.network_address)}/{network.prefixlen}"


def _private_source(network: IPNetwork | None) -> str | None:
    """What of an IPv6 network is behind the host's address on its way out; None is nothing.

    That of unique local addresses, which no host outside can answer.
    """
    private = IPv6Network(UNIQUE_LOCAL)
    if not isinstance(network, IPv6Network) or not network.overlaps(private):
        return None
    return f"-s {_written_network(max(network, private, key=lambda one: one.prefixlen))} "


def _comment(owner: str) -> str:
    """An owner as one line of a rule can hold it: printable ASCII, bounded."""
    return "".join(c if " " <= c <= "~" else "?" for c in owner[:MAX_COMMENT])


def quoted(text: str) -> str:
    """Text as iptables-save prints a comment."""
    if re.fullmatch(r"[A-Za-z0-9_-]+", text):
        return text
    return '"' + re.sub(r"([\"\\'])", r"\\\1", text) + '"'


def unquoted(text: str) -> str:
    """The inverse of `quoted`."""
    return re.sub(r"\\(.)", r"\1", text[1:-1]) if text[:1] == '"' else text

"""What iptables, in one variant or the other, still has under our name, and removing it."""

import shutil
from pathlib import Path

from netalloc.host.netlink import NETLINK_NETFILTER, NetlinkError, NetlinkSocket
from netalloc.host.netlink_messages import text
from netalloc.model import PortMapping
from netalloc.portmap.iptables import commands, rules
from netalloc.portmap.iptables.difference import removal
from netalloc.portmap.iptables.state import ChainState

VARIANTS = ("legacy", "nft")
_TABLES = ("nat", "mangle", "raw", "filter")
_GET_CHAIN = 10 << 8 | 4  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETCHAIN
_IPV4 = b"\x02\0\0\0"  # struct nfgenmsg: family, version, resource
_TABLE, _NAME = 1, 3


def tables_of(variant: str, name: str) -> list[str]:
    """The tables of a variant that may hold something of ours; starts no process.

    Of legacy iptables those that exist, for the kernel does not tell what is in them; of
    the other those that have our chain.
    """
    if variant == "legacy":
        names = Path("/proc/thread-self/net/ip_tables_names")
        try:
            there = names.read_text().split()
        except OSError:  # this kernel has none, or we may not look
            return []
        return [table for table in _TABLES if table in there] if "nat" in there else []
    try:
        netlink = NetlinkSocket(NETLINK_NETFILTER)
    except NetlinkError:
        return []
    try:
        found = [table for table in _TABLES if _has_chain(netlink, table, name)]
    finally:
        netlink.close()
    return found if "nat" in found else []


def is_there(variant: str, name: str) -> bool:
    """Whether that variant has chains of ours; starts a process where `tables_of` cannot tell."""
    if "nat" not in tables_of(variant, name) or shutil.which(f"iptables-{variant}-save") is None:
        return False
    # Made together with the rest, and a name that no other program gives.
    return f"{name}/nat" in commands.read("nat", variant=variant)["nat"]


def remove(variant: str, name: str) -> list[PortMapping]:
    """Remove our chains, and what leads to them, from all tables of a variant.

    Returns the mappings that were among them. Chains of another program that bear our name
    stay. Nothing there, or no such iptables, is no error; raises CommandError.
    """
    if not is_there(variant, name):
        return []
    tables = tables_of(variant, name)
    state = commands.read(*tables, variant=variant)
    ours = rules.fixed_rules(name, "-", None, bridged=True)
    ours["filter"] = {chain: [f"-j {name}/fwd"] for chain in ("FORWARD", "DOCKER-USER")}
    for table in tables:
        if lines := removal(state[table], ours[table], name):
            commands.restore({table: lines}, variant=variant)
    return list(ChainState.read(state["nat"], name).present.values())


def _has_chain(netlink: NetlinkSocket, table: str, name: str) -> bool:
    for chain in (name, f"{name}/fwd"):
        try:
            netlink.call(_GET_CHAIN, _IPV4 + text(_TABLE, table) + text(_NAME, chain))
        except NetlinkError:  # none there, or no privilege to look
            continue
        return True
    return False

"""What iptables, in one variant or the other, still has under our name, and removing it."""

import shutil
from collections.abc import Collection

from netalloc.family import FAMILIES, Family
from netalloc.host.netlink import NETLINK_NETFILTER, NetlinkError, NetlinkSocket
from netalloc.host.netlink_messages import text
from netalloc.model import PortMapping
from netalloc.portmap.iptables import commands, rules
from netalloc.portmap.iptables.difference import removal
from netalloc.portmap.iptables.state import ChainState

VARIANTS = ("legacy", "nft")
_TABLES = ("nat", "mangle", "raw", "filter")
_GET_CHAIN = 10 << 8 | 4  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETCHAIN
_TABLE, _NAME = 1, 3


def tables_of(
    variant: str, name: str, families: Collection[Family] = FAMILIES
) -> dict[Family, list[str]]:
    """The tables of a variant that may hold something of ours; starts no process.

    Of legacy iptables those that exist, for the kernel does not tell what is in them; of
    the other those that have our chain. Families without any are left out.
    """
    if variant == "legacy":
        there = {family: commands.legacy_tables(family) for family in families}
        found = {family: [t for t in _TABLES if t in there[family]] for family in families}
    else:
        try:
            netlink = NetlinkSocket(NETLINK_NETFILTER)
        except NetlinkError:
            return {}
        try:
            found = {
                family: [table for table in _TABLES if _has_chain(netlink, family, table, name)]
                for family in families
            }
        finally:
            netlink.close()
    return {family: tables for family, tables in found.items() if "nat" in tables}


def is_there(variant: str, name: str, families: Collection[Family] = FAMILIES) -> bool:
    """Whether that variant has chains of ours; starts a process where `tables_of` cannot tell."""
    return any(_is_there(variant, family, name) for family in tables_of(variant, name, families))


def remove(variant: str, name: str, families: Collection[Family] = FAMILIES) -> list[PortMapping]:
    """Remove our chains, and what leads to them, from all tables of a variant.

    Returns the mappings that were among them. Chains of another program that bear our name
    stay. Nothing there, or no such iptables, is no error; raises CommandError.
    """
    gone: list[PortMapping] = []
    for family, tables in tables_of(variant, name, families).items():
        if not _is_there(variant, family, name):
            continue
        state = commands.read(*tables, family=family, variant=variant)
        ours = rules.jumps(name, family)
        for table in tables:
            if lines := removal(state[table], ours[table], name):
                commands.restore({table: lines}, family=family, variant=variant)
        gone += ChainState.read(state["nat"], name, family).present.values()
    return gone


def _is_there(variant: str, family: Family, name: str) -> bool:
    if shutil.which(f"{family.iptables}-{variant}-save") is None:
        return False
    # Made together with the rest, and a name that no other program gives.
    return f"{name}/nat" in commands.read("nat", family=family, variant=variant)["nat"]


def _has_chain(netlink: NetlinkSocket, family: Family, table: str, name: str) -> bool:
    for chain in (name, f"{name}/fwd"):
        try:
            netlink.call(_GET_CHAIN, family.header + text(_TABLE, table) + text(_NAME, chain))
        except NetlinkError:  # none there, or no privilege to look
            continue
        return True
    return False

"""Bridges that were made here because a network was to have one: told by their alias.

A bridge of the administrator's own is used as it is, and stays.
"""

import socket
from collections.abc import Iterable
from contextlib import closing
from ipaddress import IPv4Interface, IPv6Interface

from netalloc.host.bridge_count import port_indexes
from netalloc.host.links import Links, check_name
from netalloc.host.macs import bridge_mac

_MADE = "netalloc-bridge "


def is_there(bridge: str) -> bool:
    """Whether this network namespace has an interface of that name. A microsecond."""
    try:
        socket.if_nametoindex(check_name(bridge, "bridge"))
    except OSError:
        return False
    return True


def make(bridge: str, network: str, addresses: Iterable[IPv4Interface | IPv6Interface]) -> None:
    """Make the bridge of a network, with its gateways' addresses. Raises InterfaceError.

    Its MAC address follows from its name, as attaching has it: containers that know it find the
    bridge that comes after this one, too.
    """
    mac = bridge_mac(bridge).hex(":")
    with closing(Links()) as links:
        links.create_bridge(bridge, *addresses, alias=_MADE + network, mac=mac)


def remove(bridge: str, network: str) -> bool:
    """Remove it if it was made here for that network, and nothing is on it; whether it was."""
    if not is_there(bridge):
        return False
    with closing(Links()) as links:
        if links.alias(bridge) != _MADE + network or port_indexes(bridge):
            return False
        links.delete(bridge, missing_ok=True)
        return True

"""MAC addresses that follow from IP addresses."""

from hashlib import blake2b
from ipaddress import IPv4Address, IPv6Address
from operator import xor

# Of the host's end of every routed container: only the container sees it.
HOST_END = bytes.fromhex("02fefefefefe")


def mac_of(address: IPv4Address | IPv6Address) -> bytes:
    """The MAC address of the container that has this IP address, locally administered.

    Always the same, so that a restarted container is found where its predecessor was. Two
    IPv4 addresses never share one, nor do two of the first 2^40 addresses of an IPv6 network.

    >>> mac_of(IPv4Address("10.88.0.2")).hex(":")
    '02:42:0a:58:00:02'
    """
    if address.version == 4:
        return b"\x02\x42" + address.packed
    prefix = blake2b(address.packed[:11], digest_size=5).digest()
    # 06: locally administered too, and never that of an IPv4 address.
    return b"\x06" + bytes(map(xor, prefix, address.packed[11:]))


def bridge_mac(name: str) -> bytes:
    """One for the bridge of that name, always the same."""
    return b"\x0a" + blake2b(name.encode(), digest_size=5).digest()

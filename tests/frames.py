"""Ethernet frames of a container that keeps to no rule, byte by byte."""

import struct
from ipaddress import IPv6Address, ip_address

ALL = b"\xff" * 6
ALL_NODES = ip_address("ff02::1")
ARP, IPV4, IPV6 = 0x0806, 0x0800, 0x86DD
RA, NS, NA, REDIRECT = 134, 135, 136, 137


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ethernet(to, source, kind, payload):
    return to + source + struct.pack(">H", kind) + payload


def udp(source, to, payload, *, port=80, sport=4000):
    """A datagram with its IP header, of the family of the addresses."""
    source, to = ip_address(source), ip_address(to)
    head = struct.pack(">HHHH", sport, port, 8 + len(payload), 0)
    total = checksum(_pseudo(source, to, 17, len(head) + len(payload)) + head + payload)
    return ip(source, to, 17, head[:6] + struct.pack(">H", total or 0xFFFF) + payload)


def ip(source, to, protocol, payload, hops=64):
    source, to = ip_address(source), ip_address(to)
    if source.version == 6:
        head = struct.pack(">IHBB", 6 << 28, len(payload), protocol, hops)
        return head + source.packed + to.packed + payload
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, hops, protocol, 0)
    head += source.packed + to.packed
    return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + payload


def icmpv6(source, to, kind, body):
    source, to = ip_address(source), ip_address(to)
    data = struct.pack(">BBH", kind, 0, 0) + body
    total = checksum(_pseudo(source, to, 58, len(data)) + data)
    return ip(source, to, 58, data[:2] + struct.pack(">H", total) + data[4:], hops=255)


def advertisement(source, to, target, mac):
    """An unasked neighbour advertisement that overrides what is known."""
    body = struct.pack(">I", 0x20000000) + ip_address(target).packed + b"\x02\x01" + mac
    return icmpv6(source, to, NA, body)


def solicitation(source, target, mac):
    """What asks for a target, and says where the asker is."""
    target = ip_address(target)
    group = IPv6Address(int(ip_address("ff02::1:ff00:0")) | int(target) & 0xFFFFFF)
    body = bytes(4) + target.packed + b"\x01\x01" + mac
    return group, icmpv6(source, group, NS, body)


def router(source, mac):
    """An advertisement that makes its sender the router of all."""
    body = struct.pack(">BBHII", 64, 0, 1800, 0, 0) + b"\x01\x01" + mac
    return icmpv6(source, ALL_NODES, RA, body)


def redirect(source, to, target, destination):
    body = bytes(4) + ip_address(target).packed + ip_address(destination).packed
    return icmpv6(source, to, REDIRECT, body)


def arp(operation, mac, sender, target_mac, target):
    head = struct.pack(">HHBBH", 1, IPV4, 6, 4, operation)
    return head + mac + ip_address(sender).packed + target_mac + ip_address(target).packed


def group_mac(group):
    """Where a multicast address of IPv6 goes."""
    return b"\x33\x33" + ip_address(group).packed[12:]


def _pseudo(source, to, protocol, size):
    if source.version == 6:
        return source.packed + to.packed + struct.pack(">II", size, protocol)
    return source.packed + to.packed + struct.pack(">BBH", 0, protocol, size)

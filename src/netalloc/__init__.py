"""Addresses, host ports and port mappings for dense container and microVM hosts."""

from netalloc._alloc import (
    Bitmap,
    IPAllocator,
    int_to_ip,
    ip_to_int,
    network_range,
    network_size,
)
from netalloc.errors import (
    CommandError,
    ExhaustedError,
    InterfaceError,
    InUseError,
    NetallocError,
    NotAllocatedError,
    OutOfRangeError,
    StaleLeaseError,
    StoreError,
)
from netalloc.host.links import interface_address
from netalloc.interface import NetworkInterface
from netalloc.manager import NetworkManager
from netalloc.model import Mapping, Repairs
from netalloc.portmap import PortMapper
from netalloc.portmap.iptables import iptables
from netalloc.ports import PortAllocator
from netalloc.publishing import Publish

__all__ = [
    "Bitmap",
    "CommandError",
    "ExhaustedError",
    "IPAllocator",
    "InUseError",
    "InterfaceError",
    "Mapping",
    "NetallocError",
    "NetworkInterface",
    "NetworkManager",
    "NotAllocatedError",
    "OutOfRangeError",
    "PortAllocator",
    "PortMapper",
    "Publish",
    "Repairs",
    "StaleLeaseError",
    "StoreError",
    "int_to_ip",
    "interface_address",
    "ip_to_int",
    "iptables",
    "network_range",
    "network_size",
]

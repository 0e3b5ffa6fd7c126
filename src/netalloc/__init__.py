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
from netalloc.model import Mapping, Repairs

__all__ = [
    "Bitmap",
    "CommandError",
    "ExhaustedError",
    "IPAllocator",
    "InUseError",
    "InterfaceError",
    "Mapping",
    "NetallocError",
    "NotAllocatedError",
    "OutOfRangeError",
    "Repairs",
    "StaleLeaseError",
    "StoreError",
    "int_to_ip",
    "ip_to_int",
    "network_range",
    "network_size",
]

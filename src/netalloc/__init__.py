"""Addresses, host ports and port mappings for dense container and microVM hosts."""

TYPE_CHECKING = False  # typing itself would be a third of the time this takes to import
if TYPE_CHECKING:
    from netalloc._alloc import (
        Bitmap,
        IPAllocator,
        Subnet,
        int_to_ip,
        ip_to_int,
        network_range,
        network_size,
    )
    from netalloc.errors import (
        ClosedError,
        CommandError,
        ExhaustedError,
        InterfaceError,
        InUseError,
        InvalidValueError,
        NetallocError,
        NotAllocatedError,
        OutOfRangeError,
        QuotaError,
        StaleLeaseError,
        StoreError,
    )
    from netalloc.host.links import interface_address
    from netalloc.manager.interface import NetworkInterface
    from netalloc.manager.manager import NetworkManager
    from netalloc.manager.networks import Networks
    from netalloc.manager.view import NetworkView
    from netalloc.model import PortMapping, PortRequest, ReconcileResult
    from netalloc.portmap.iptables.commands import iptables
    from netalloc.portmap.mapper import PortMapper
    from netalloc.ports import PortAllocator

# Where each public name comes from. It is loaded at its first use (PEP 562): a command line
# that only looks, or a plugin that starts once for each container, pays for nothing else.
_HOME = {
    "Bitmap": "_alloc",
    "ClosedError": "errors",
    "CommandError": "errors",
    "ExhaustedError": "errors",
    "IPAllocator": "_alloc",
    "InUseError": "errors",
    "InterfaceError": "errors",
    "InvalidValueError": "errors",
    "NetallocError": "errors",
    "NetworkInterface": "manager.interface",
    "NetworkManager": "manager.manager",
    "NetworkView": "manager.view",
    "Networks": "manager.networks",
    "NotAllocatedError": "errors",
    "OutOfRangeError": "errors",
    "PortAllocator": "ports",
    "PortMapper": "portmap.mapper",
    "PortMapping": "model",
    "PortRequest": "model",
    "QuotaError": "errors",
    "ReconcileResult": "model",
    "StaleLeaseError": "errors",
    "StoreError": "errors",
    "Subnet": "_alloc",
    "int_to_ip": "_alloc",
    "interface_address": "host.links",
    "ip_to_int": "_alloc",
    "iptables": "portmap.iptables.commands",
    "network_range": "_alloc",
    "network_size": "_alloc",
}

__all__ = sorted(_HOME)  # noqa: PLE0605


if TYPE_CHECKING:
    __version__: str


def __getattr__(name: str) -> object:
    if name == "__version__":  # importlib.metadata takes 10 ms to load
        from importlib.metadata import version

        globals()[name] = found = version(__name__)
        return found
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from netalloc.light import loaded

    # Not importlib's import_module: to load that takes half a millisecond.
    value = getattr(loaded(lambda: __import__(f"{__name__}.{home}", fromlist=(name,))), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, "__version__"})

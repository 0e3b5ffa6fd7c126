"""NetworkManager and Networks for asyncio: coroutines that never hold up the event loop."""

from netalloc.aio.interface import AsyncNetworkInterface
from netalloc.aio.manager import AsyncNetworkManager
from netalloc.aio.networks import AsyncNetworks
from netalloc.aio.watch import AsyncWatch

NetworkInterface = AsyncNetworkInterface
NetworkManager = AsyncNetworkManager
Networks = AsyncNetworks
Watch = AsyncWatch

__all__ = [
    "AsyncNetworkInterface",
    "AsyncNetworkManager",
    "AsyncNetworks",
    "AsyncWatch",
    "NetworkInterface",
    "NetworkManager",
    "Networks",
    "Watch",
]

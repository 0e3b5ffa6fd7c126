"""All networks of a host, by name, for asyncio."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, TypeVar, overload

from netalloc.aio.manager import AsyncNetworkManager
from netalloc.aio.threads import Threads, each_closed
from netalloc.errors import ClosedError, InUseError, InvalidValueError
from netalloc.logs import Log
from netalloc.manager.networks import Networks
from netalloc.values import as_items

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable
    from types import TracebackType
    from typing import Any

    from netalloc.address_values import IP
    from netalloc.ipam.networks import NetworkInfo
    from netalloc.manager.manager import NetworkManager
    from netalloc.store.protocol import Store

D = TypeVar("D")
log = Log(__name__)


class AsyncNetworks:
    """Networks with coroutines: what each does is told there.

    The store is opened when it is awaited, or entered by `async with`, whose end closes it.
    `async for` gives the names, and `await networks[name]` how one is configured. The managers
    that are opened here are kept, and closed with it.

    >>> import asyncio, tempfile
    >>> async def main(folder):
    ...     async with AsyncNetworks(f"{folder}/host.db") as host:
    ...         web = await host.create("web", "10.88.0.1/16", bridge="br0", backend="null")
    ...         lease = await web.allocate("shop")
    ...         print(lease.ip, [name async for name in host], (await host["web"]).subnet)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     asyncio.run(main(folder))
    10.88.0.2 ['web'] 10.88.0.1/16
    """

    def __init__(self, store: str | os.PathLike[str] | Store) -> None:
        self._store = store
        self._threads_or_none: Threads | None = None
        self._networks_or_none: Networks | None = None
        self._managers: list[AsyncNetworkManager] = []

    def __await__(self) -> Generator[Any, None, AsyncNetworks]:
        return self._opened().__await__()

    async def _opened(self) -> AsyncNetworks:
        if self._threads_or_none is not None:
            self._threads.check_loop()
            return self
        threads = self._threads_or_none = Threads("the networks")
        try:
            self._networks_or_none = await threads.open(
                partial(Networks, self._store), lambda networks: networks.close()
            )
        except BaseException:
            self._threads_or_none = None
            raise
        return self

    @property
    def _threads(self) -> Threads:
        if self._threads_or_none is None:
            raise InvalidValueError("these networks are not open: await them, or use `async with`")
        return self._threads_or_none

    @property
    def _networks(self) -> Networks:
        if self._networks_or_none is None:
            raise InvalidValueError("these networks are not open: await them, or use `async with`")
        return self._networks_or_none

    # ---- looking

    async def __getitem__(self, name: str) -> NetworkInfo:
        return await self._threads.read(lambda: self._networks[name])

    async def __aiter__(self) -> AsyncIterator[str]:
        for name in await self.keys():
            yield name

    @overload
    async def get(self, key: str, default: None = None) -> NetworkInfo | None: ...
    @overload
    async def get(self, key: str, default: D) -> NetworkInfo | D: ...
    async def get(self, key: str, default: D | None = None) -> NetworkInfo | D | None:
        """How a network is configured; the default where it is not registered."""
        return await self._threads.read(lambda: self._networks.get(key, default))

    async def keys(self) -> list[str]:
        """The names."""
        return await self._threads.read(lambda: list(self._networks))

    async def values(self) -> list[NetworkInfo]:
        """How each network is configured."""
        return [info for _, info in await self.items()]

    async def items(self) -> list[tuple[str, NetworkInfo]]:
        """Each name with how that network is configured."""

        def look() -> list[tuple[str, NetworkInfo]]:
            found = [(name, self._networks.get(name)) for name in self._networks]
            return [(name, info) for name, info in found if info is not None]  # removed meanwhile

        return await self._threads.read(look)

    # ---- one network

    async def create(
        self, name: str, network: Any = None, *, bridge: str | None = None, **configuration: Any
    ) -> AsyncNetworkManager:
        """Register a network and open it. Cancelled it is removed, unless it is in use by then."""
        networks = self._networks

        def undo(manager: NetworkManager) -> None:
            try:
                networks.remove(manager.name)
            except InUseError as error:
                log.warning("a network that was created stays: %s", error)

        make = partial(networks.create, name, network, bridge=bridge, **configuration)
        return self._wrapped(await self._threads.take(make, undo, (("network", str(name)),)))

    async def open(self, name: str) -> AsyncNetworkManager:
        """The manager of a network that is registered; the same one for each call."""
        return self._wrapped(await self._threads.read(partial(self._networks.open, name)))

    async def remove(self, name: str) -> None:
        """Take a network out of the store, and what it has in the kernel."""
        await self._threads.give(partial(self._networks.remove, name))
        for one in self._managers:
            if one.name == name and one.closed:
                await one.close()  # its threads

    def _wrapped(self, manager: NetworkManager) -> AsyncNetworkManager:
        if self._threads.closed:
            raise ClosedError("these networks are closed")
        self._managers = [one for one in self._managers if not one._threads.closed]
        for one in self._managers:
            if one._manager is manager:
                return one
        made = AsyncNetworkManager(manager, Threads(f"the manager of {manager.name}"))
        self._managers.append(made)
        return made

    # ---- all of them

    async def release(self, owner: str) -> int:
        """Release all that an owner holds on this host; how many interfaces that were."""
        return await self._threads.give(partial(self._networks.release, owner))

    async def gc(self, alive: Iterable[str], grace: float = 30.0) -> dict[str, list[IP]]:
        """Release what belongs to owners that are not among the living: addresses by network."""
        living = as_items(alive, "alive")
        return await self._threads.change(partial(self._networks.gc, living, grace))

    async def check(self) -> list[str]:
        """What is wrong with the store, and with each network's part of the kernel. O(held)."""
        return await self._threads.read(self._networks.check)

    async def close(self) -> None:
        """Close the managers that were opened here, and the store; twice is no error.

        A cancellation is raised when all of it is done.
        """
        threads, networks = self._threads, self._networks
        threads.check_loop()
        threads.refuse()
        steps: list[Callable[[], Coroutine[Any, Any, None]]] = [one.close for one in self._managers]
        steps.append(partial(threads.close, networks.close))
        await each_closed(steps)

    async def __aenter__(self) -> AsyncNetworks:
        return await self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

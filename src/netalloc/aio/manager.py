"""The manager of one network, for asyncio: each call in a thread, none that holds up the loop."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from netalloc.aio import taking
from netalloc.aio.configured import AsyncConfiguredNetwork
from netalloc.aio.interface import AsyncNetworkInterface, sync
from netalloc.aio.many import AsyncManyInterfaces
from netalloc.aio.opening import Opening
from netalloc.aio.threads import Threads
from netalloc.aio.watch import AsyncWatch
from netalloc.errors import InvalidValueError
from netalloc.manager.interface import as_address, as_requests
from netalloc.manager.manager import NetworkManager
from netalloc.values import as_items, as_labels, shown

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable
    from datetime import datetime
    from types import TracebackType
    from typing import Any, NoReturn

    from netalloc.address_values import IP
    from netalloc.ipam.history import PastLease
    from netalloc.manager.statement import StatedNetwork
    from netalloc.model import PortRequest, ReconcileResult
    from netalloc.portmap.backend import Backend
    from netalloc.ports import Probe
    from netalloc.store.protocol import Store


class AsyncNetworkManager(AsyncManyInterfaces, AsyncConfiguredNetwork):
    """NetworkManager with coroutines: what each does is told there.

    Made by `create` or `open`; each may be awaited, or be the `async with` whose end closes it.
    It belongs to the event loop that it was made in.

    Calls run in at most 20 threads of its own, which end with it: 16 for changes, 4 for those
    that read. A task that is cancelled within a call goes on when the call is over: one that no
    thread has begun is not made at all, what another has taken is given back, and what releases
    is made in any case. A second cancellation does not wait for that; `close` does.

    >>> import asyncio
    >>> async def main():
    ...     manager = AsyncNetworkManager.create("br0", network="10.88.0.1/16", backend="null")
    ...     async with manager as manager:
    ...         web = await manager.allocate(owner="web")
    ...         print(web.address, web.gateway, await web.allocate_port(80))
    >>> asyncio.run(main())
    10.88.0.2/16 10.88.0.1 49153
    """

    def __init__(self, manager: NetworkManager, threads: Threads) -> None:
        self._manager = manager
        self._threads = threads
        self._watches: set[AsyncWatch] = set()

    @classmethod
    def create(
        cls,
        bridge: str | None,
        *,
        network: StatedNetwork | None = None,
        exclude: Iterable[Any] | None = None,
        ports: range | None = None,
        backend: str | Backend = "auto",
        store: str | os.PathLike[str] | Store | None = None,
        name: str | None = None,
        cooldown: float | None = None,
        sticky: float | None = None,
        forward: bool | None = None,
        mode: str | None = None,
        isolation: str | None = None,
        services: Iterable[str] | None = None,
        probe: Probe | None = None,
    ) -> Opening[AsyncNetworkManager]:
        """The manager of a network; the arguments are NetworkManager's.

        Cancelled it is closed again. `probe` is called in a thread.
        """
        make = partial(
            NetworkManager,
            bridge,
            network=network,
            exclude=exclude,
            ports=ports,
            backend=backend,
            store=store,
            name=name,
            cooldown=cooldown,
            sticky=sticky,
            forward=forward,
            mode=mode,
            isolation=isolation,
            services=services,
            probe=probe,
        )
        return Opening(partial(cls._opened, make))

    @classmethod
    def open(
        cls, name: str, store: str | os.PathLike[str] | Store, *, probe: Probe | None = None
    ) -> Opening[AsyncNetworkManager]:
        """The manager of a network that is registered in a store, with all its configuration.

        Raises NotAllocatedError for a name that is not registered, naming those that are.
        """
        make = partial(NetworkManager.open, name, store, probe=probe)
        return Opening(partial(cls._opened, make))

    @classmethod
    async def _opened(cls, make: Callable[[], NetworkManager]) -> AsyncNetworkManager:
        threads = Threads("the manager")
        manager = await threads.open(make, NetworkManager.close)
        return cls(manager, threads)

    # ---- allocation

    async def allocate(
        self,
        owner: str | None = None,
        ip: IP | str | None = None,
        *,
        key: str | None = None,
        labels: dict[str, str] | None = None,
        ports: Iterable[int | PortRequest] = (),
        allow_cooling: bool = False,
        check_host: bool = True,
    ) -> AsyncNetworkInterface:
        """An interface with the next free address, or with `ip`, and with `ports` published.

        Cancelled it is released, unless it was there before, by its `key`.
        """
        arguments = {
            "owner": owner,
            "ip": ip,
            "labels": None if labels is None else as_labels(labels),
            "ports": as_requests(ports),
            "allow_cooling": allow_cooling,
            "check_host": check_host,
        }
        alone = (("key", str(owner), str(key)),) if key is not None else ()
        made, _ = await self._threads.take(
            partial(taking.allocate, self._manager, key, arguments), taking.give_back_new, alone
        )
        return AsyncNetworkInterface(made, self._threads)

    async def reserve(self, ip: IP | str, owner: str | None = None) -> None:
        """Keep an address for `owner`, or from everyone, until unreserve.

        Cancelled it is not reserved, unless it was before.
        """
        plain = as_address(ip)
        ordinal = self._manager._leases.subnets.ordinal(plain)
        await self._threads.take(
            partial(taking.reserve, self._manager, plain, owner),
            partial(taking.unreserve, self._manager),
            (("reserve", ordinal),),
        )

    async def unreserve(self, ip: IP | str) -> None:
        """Keep an address no longer; a lease of it goes on. Raises NotAllocatedError."""
        await self._threads.give(partial(self._manager.unreserve, ip))

    async def interfaces(self) -> list[AsyncNetworkInterface]:
        """Every interface of this network, in whatever process it was allocated."""
        return await self.find()

    async def find(
        self, owner: str | None = None, label: str | tuple[str, str] | None = None
    ) -> list[AsyncNetworkInterface]:
        """The interfaces of an owner, those with a label ("app=shop", or a pair), or all."""
        return await self._threads.read(lambda: self._interfaces(self._manager.find(owner, label)))

    async def release(self, owner: str) -> int:
        """Release all that an owner has here; how many interfaces that were."""
        return await self._threads.give(partial(self._manager.release, owner))

    # ---- who reaches whom

    async def allow(
        self, one: AsyncNetworkInterface | IP | str, other: AsyncNetworkInterface | IP | str
    ) -> None:
        """Let two interfaces of a guarded network reach each other, over IPv4 and IPv6."""
        await self._threads.change(partial(self._manager.allow, sync(one), sync(other)))

    async def disallow(
        self, one: AsyncNetworkInterface | IP | str, other: AsyncNetworkInterface | IP | str
    ) -> None:
        """Let two reach each other no longer; what they have open ends. Not to be is no error."""
        await self._threads.give(partial(self._manager.disallow, sync(one), sync(other)))

    async def allowed(self) -> list[tuple[IP, IP]]:
        """The pairs that reach each other, each once, by the first of their addresses."""
        return await self._threads.read(self._manager.allowed)

    # ---- upkeep

    async def reconcile(self) -> ReconcileResult:
        """Make the kernel agree with what is published; returns what was repaired."""
        return await self._threads.change(self._manager.reconcile)

    async def watch(self, on_repair: Callable[[ReconcileResult], None] | None = None) -> AsyncWatch:
        """Reconcile now, and within a second whenever another program changes the rules.

        What was repaired then, one after the other, until it or the manager is closed.
        `on_repair` is called in the loop.
        """
        if on_repair is not None and not callable(on_repair):
            raise InvalidValueError(f"on_repair {shown(on_repair)} cannot be called")
        self._threads.check_loop()
        found = AsyncWatch(self._threads, on_repair)
        watch = await self._threads.take(
            partial(self._manager.watch, found._tell), lambda watch: watch.close()
        )
        self._watches = {one for one in self._watches if not one._ended} | {found}
        return found._begun(watch)

    async def gc(self, alive: Iterable[str], grace: float = 30.0) -> list[IP]:
        """Release what belongs to owners that are not among the living; the addresses freed."""
        living = as_items(alive, "alive")
        return await self._threads.change(partial(self._manager.gc, living, grace))

    async def history(self, ip: IP | str, at: datetime | None = None) -> list[PastLease]:
        """What held an address, oldest first; with `at`, what did at that moment."""
        return await self._threads.read(partial(self._manager.history, ip, at))

    async def check(self) -> list[str]:
        """What is wrong with the store, in itself and against the kernel. O(held)."""
        return await self._threads.read(self._manager.check)

    async def repair(self) -> list[str]:
        """Mend what check() finds, as far as it can be mended; says what was done."""
        return await self._threads.change(self._manager.repair)

    @property
    def stale_releases(self) -> int:
        """How many releases came too late here, and changed nothing."""
        return self._manager.stale_releases

    @property
    def not_given_back(self) -> int:
        """How many cancelled calls could not give back what they took; each is logged."""
        return self._threads.lost

    async def close(self) -> None:
        """Give everything back. What a file holds stays, its mappings too.

        Waits for calls in progress, and for what cancelled ones give back; then none of its
        threads is left. Twice is no error. A cancellation is raised when all of that is done.
        """
        self._threads.check_loop()
        for watch in self._watches:
            watch._end()
        await self._threads.close(self._manager.close)

    async def __aenter__(self) -> AsyncNetworkManager:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def __reduce__(self) -> NoReturn:
        raise InvalidValueError(
            f"{self!r} cannot be copied or pickled: AsyncNetworkManager.open(name, store) opens it "
            "elsewhere"
        )

    def __repr__(self) -> str:
        return repr(self._manager).replace("<", "<Async", 1)

"""Calls about many interfaces of a network at once, for asyncio."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from netalloc.aio import taking
from netalloc.aio.interface import AsyncNetworkInterface, sync
from netalloc.manager.interface import NetworkInterface, as_requests
from netalloc.values import as_items, as_labels

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from netalloc.aio.threads import Threads
    from netalloc.manager.manager import NetworkManager
    from netalloc.model import PortRequest


class AsyncManyInterfaces:
    """What a manager does with many at once, in a part of the time that one by one would take."""

    _manager: NetworkManager
    _threads: Threads

    async def allocate_many(
        self,
        n: int,
        ports: Iterable[int | PortRequest] = (),
        owner: str | None = None,
        *,
        labels: dict[str, str] | None = None,
        check_host: bool = True,
    ) -> list[AsyncNetworkInterface]:
        """n interfaces, each with `ports` published, all or none. Cancelled: released."""
        requests = as_requests(ports)
        plain = None if labels is None else as_labels(labels)
        manager = self._manager

        def work() -> list[AsyncNetworkInterface]:
            return self._interfaces(
                manager.allocate_many(n, requests, owner, labels=plain, check_host=check_host)
            )

        return await self._threads.take(work, lambda made: manager.release_many(map(sync, made)))

    async def attach_many(
        self,
        pairs: Iterable[tuple[AsyncNetworkInterface, str | int | os.PathLike[str]]],
        *,
        ifname: str = "eth0",
        mtu: int | None = None,
    ) -> None:
        """Put many into their network namespaces, all or none. Cancelled: those are detached
        that were not attached before.
        """
        plain = [_plain(pair) for pair in as_items(pairs, "pairs")]
        found = [pair[0] for pair in plain if isinstance(pair, tuple) and pair]
        alone = [("attach", one.generation) for one in found if isinstance(one, NetworkInterface)]
        await self._threads.take(
            partial(self._manager._attach_many, plain, ifname, mtu),
            partial(taking.detach, self._manager),
            alone,
        )

    async def detach_many(self, interfaces: Iterable[AsyncNetworkInterface]) -> None:
        """Take many off the machine, whose leases go on; see `detach`."""
        given = [sync(one) for one in as_items(interfaces, "interfaces")]
        await self._threads.give(partial(self._manager.detach_many, given))

    async def release_many(self, interfaces: Iterable[AsyncNetworkInterface]) -> int:
        """Release many, some hundred in a change; how many of them were still in force."""
        given = [sync(one) for one in as_items(interfaces, "interfaces")]
        return await self._threads.give(partial(self._manager.release_many, given))

    def _interfaces(self, found: list[NetworkInterface]) -> list[AsyncNetworkInterface]:
        return [AsyncNetworkInterface(one, self._threads) for one in found]


def _plain(pair: object) -> object:
    """A pair with the interface behind its first item; what is none is refused where it is used."""
    if isinstance(pair, (tuple, list)):
        return tuple([sync(one) for one in pair])
    return pair

"""All networks of a host, by name: to create, open and remove them, and what is done over all."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from threading import RLock
from typing import Any, TypeVar

from netalloc.address_values import IP
from netalloc.closing import Closing
from netalloc.errors import ClosedError, InvalidValueError, NotAllocatedError
from netalloc.ipam.networks import NetworkInfo, as_network_name, find, get, info, networks, remove
from netalloc.locks import locked
from netalloc.manager.assembly import kernel_cleanup
from netalloc.manager.host_store import open_store
from netalloc.manager.manager import NetworkManager
from netalloc.manager.undo import Teardown, attempt
from netalloc.store.protocol import Store, Transaction
from netalloc.values import as_each, as_text

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

T = TypeVar("T")
_TRIES = 10  # at a network that other processes remove and create all the time


class Networks(Mapping[str, NetworkInfo], Closing):
    """The networks of a store, as a mapping from names to how they are configured.

    `store` is the path of a file, made when there is none. The managers that are opened here
    are kept, and closed with it. Thread-safe; a context manager.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, Networks(f"{folder}/host.db") as host:
    ...     web = host.create("web", "10.88.0.1/16", bridge="br0", backend="null")
    ...     str(web.allocate("shop").ip), list(host), str(host["web"].subnet)
    ('10.88.0.2', ['web'], '10.88.0.1/16')
    """

    def __init__(self, store: "str | os.PathLike[str] | Store") -> None:
        self._managers: dict[str, NetworkManager] = {}
        self._lock = RLock()
        self._closed = False
        host = open_store(store)
        self._close_store = host.close
        self._store = host.store

    @property
    def store(self) -> Store:
        """The store that they are in, which closes with these."""
        return self._store

    # ---- looking

    def __getitem__(self, name: str) -> NetworkInfo:
        network = self._read(lambda tx: find(tx, as_network_name(name)))
        if network is None:
            raise KeyError(name)
        return info(network)

    def __iter__(self) -> Iterator[str]:
        return iter(self._read(lambda tx: [network.name for network in networks(tx)]))

    def __len__(self) -> int:
        return self._read(lambda tx: len(networks(tx)))

    def __contains__(self, name: object) -> bool:
        try:
            plain = as_network_name(name)
        except InvalidValueError:
            return False
        return self._read(lambda tx: find(tx, plain)) is not None

    # ---- one network

    def create(
        self, name: str, network: Any = None, *, bridge: str | None = None, **configuration: Any
    ) -> NetworkManager:
        """Register a network and open it; the arguments are NetworkManager's.

        `bridge` is called as the network unless given, or `mode` is "routed". Raises InUseError
        for a name that is registered already, and as NetworkManager does.
        """
        name = as_network_name(name)
        mode = configuration.get("mode")
        if bridge is None and not (isinstance(mode, str) and str.__eq__(mode, "routed")):
            bridge = name
        return self._created(name, bridge, network, configuration)

    @locked
    def _created(
        self, name: str, bridge: str | None, network: Any, configuration: dict[str, Any]
    ) -> NetworkManager:
        self._check_open()
        manager = NetworkManager._create(
            bridge, self._store, network=network, name=name, **configuration
        )
        return self._kept(name, manager)

    def open(self, name: str) -> NetworkManager:
        """The manager of a network that is registered; the same one for each call.

        Raises NotAllocatedError for a name that is not registered, naming those that are.
        """
        return self._found(as_network_name(name))

    @locked
    def _found(self, name: str) -> NetworkManager:
        self._check_open()
        manager = self._managers.get(name)
        if manager is not None and (manager.closed or not manager.registered):
            manager.close()  # its network was removed, and perhaps registered anew
            del self._managers[name]
            manager = None
        if manager is None:
            manager = self._kept(name, NetworkManager.open(name, self._store))
        return manager

    def remove(self, name: str) -> None:
        """Take a network out of the store, and what it has in the kernel.

        Raises NotAllocatedError, and InUseError while addresses are held or reserved.
        """
        manager = self._removed(as_network_name(name))
        if manager is not None:
            manager.close()

    @locked
    def _removed(self, name: str) -> NetworkManager | None:
        self._check_open()

        def change(tx: Transaction) -> None:
            network = get(tx, name)
            remove(tx, network)
            tx.mark_dirty(network.number)  # where it is cut off the network stays, and is mended
            kernel_cleanup(network, self._store)

        self._store.run("remove network", change, durable=True)
        return self._managers.pop(name, None)

    # ---- all of them

    def release(self, owner: str) -> int:
        """Release all that an owner holds on this host; how many interfaces that were.

        Goes on past failures and raises them together, as an ExceptionGroup.
        """
        owner = as_text(owner, "owner")
        return sum(self._each(lambda manager: manager.release(owner)).values())

    def gc(self, alive: Iterable[str], grace: float = 30.0) -> dict[str, list[IP]]:
        """Release what belongs to owners that are not among the living: addresses by network.

        See NetworkManager.gc. Goes on past failures and raises them together.
        """
        living = as_each(alive, "alive", lambda owner: as_text(owner, "owner"))
        found = self._each(lambda manager: manager.gc(living, grace))
        return {name: addresses for name, addresses in found.items() if addresses}

    def check(self) -> list[str]:
        """What is wrong with the store, and with each network's part of the kernel. O(held)."""
        found: dict[str, None] = {}
        for name in self:

            def step(name: str = name) -> None:
                found.update(dict.fromkeys(self.open(name).check()))

            failure = self._while_there(name, step)
            if failure is not None:
                found[f"network {name} cannot be checked: {failure}"] = None
        return list(found)

    @locked
    def close(self) -> None:
        """Close the managers that were opened here, and the store; twice is no error.

        One that was interrupted may be called again.
        """
        self._closed = True
        opened = Teardown()
        opened.push(self._close_store)
        for manager in self._managers.values():
            opened.push(manager.close)
        opened.close()

    def _each(self, work: Callable[[NetworkManager], T]) -> dict[str, T]:
        done: dict[str, T] = {}
        failures = []
        for name in self:

            def step(name: str = name) -> None:
                done[name] = work(self.open(name))

            failure = self._while_there(name, step)
            if failure is not None:
                failures.append(failure)
        if failures:
            raise ExceptionGroup("not all networks could be done", failures)
        return done

    def _while_there(self, name: str, step: Callable[[], None]) -> Exception | None:
        """What went wrong; nothing where the network is removed meanwhile. Made anew: again."""
        for _ in range(_TRIES):
            failure = attempt(step)
            if not isinstance(failure, NotAllocatedError):
                break
            if name not in self:
                return None
        return failure

    def _kept(self, name: str, manager: NetworkManager) -> NetworkManager:
        self._managers[name] = manager
        return manager

    def _read(self, view: Callable[[Transaction], T]) -> T:
        self._check_open()
        return self._store.view(view)

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("these networks are closed")

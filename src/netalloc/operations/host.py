"""All that the doors can have done on a host: one object over one store.

Its parts: networks.py, lease_commands.py, upkeep.py, looking.py. This file opens what they need,
and chooses the network and the lease that a caller means.
"""

from __future__ import annotations

import os
from pathlib import Path
from threading import RLock

from netalloc.address_values import as_ip
from netalloc.closing import Closing
from netalloc.errors import (
    ClosedError,
    InvalidValueError,
    NotAllocatedError,
    OutOfRangeError,
    StoreError,
)
from netalloc.host.made_bridges import is_there
from netalloc.locks import locked
from netalloc.manager.networks import Networks
from netalloc.manager.view import NetworkView
from netalloc.operations import describe, place
from netalloc.operations.lease_commands import LeaseCommands
from netalloc.operations.looking import Looking
from netalloc.operations.network_commands import NetworkCommands
from netalloc.operations.transfer import Transfer
from netalloc.operations.upkeep import Upkeep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from netalloc.address_values import IP
    from netalloc.manager.interface import NetworkInterface
    from netalloc.manager.manager import NetworkManager
    from netalloc.manager.view import Held
    from netalloc.operations import answers


class HostOperations(Closing, NetworkCommands, LeaseCommands, Upkeep, Transfer, Looking):
    """A host's store, and what is done with it; opened by the first call that changes something.

    `store` is a path, that of place.default_store() unless given. Thread-safe; a context manager.
    Raises what NetworkManager does, and NotAllocatedError where nothing is as a caller names it.
    """

    def __init__(self, store: str | os.PathLike[str] | None = None) -> None:
        self.path = Path(place.default_store() if store is None else store)
        self._lock = RLock()
        self._networks: Networks | None = None
        self._view: NetworkView | None = None
        self._closed = False
        self._known: dict[str, NetworkManager] = {}

    # ---- opening

    @locked
    def open(self, *, make: bool = False) -> Networks:
        """The networks of the store; where there is none it is made, or a StoreError."""
        if self._closed:
            raise ClosedError(f"the store {self.path} was closed")
        if self._networks is None:
            if make:
                place.make_folder(self.path)
            elif not self.path.exists():
                raise StoreError(f"{self.path} is not there: no store was made yet")
            self._networks = Networks(self.path)
            self._view = None
        return self._networks

    @locked
    def view(self) -> NetworkView:
        """A view: of the store that is open, or else of the file."""
        if self._closed:
            raise ClosedError(f"the store {self.path} was closed")
        if self._view is None:
            self._view = NetworkView(self.path if self._networks is None else self._networks.store)
        return self._view

    @locked
    def close(self) -> None:
        """Give everything back; what the store holds stays, its mappings too. Twice is no error."""
        self._closed = True
        if self._networks is not None:
            self._networks.close()

    # ---- choosing

    def manager(self, network: str | None = None) -> NetworkManager:
        """The manager of a network, or of the only one there is.

        Its bridge is made where this machine has none of that name, as after a boot. Raises
        InvalidValueError where none is named and there are several, NotAllocatedError.
        """
        networks = self.open()
        network = self.only(network)
        known = self._known.get(network)
        if known is not None and not known.closed and known.registered:
            bridge = None if known.backend == "null" else known.bridge
            if bridge is None or is_there(bridge):
                return known
        made = self._ensure_bridge(networks, network)
        manager = self._known[network] = networks.open(network)
        if made:
            manager.reconcile()  # what was on the old one gets back
        return manager

    def only(self, network: str | None) -> str:
        """The network that is named, or the only one there is, by its name. Raises as above."""
        if network is not None:
            return network
        names = [info.name for info in self.view().networks()]
        if not names:
            raise NotAllocatedError(
                f"there is no network in {self.path} yet: netalloc network create NAME SUBNET"
            )
        if len(names) > 1:
            raise InvalidValueError(f"there are {len(names)} networks, {_listed(names)}: name one")
        return names[0]

    def manager_of(self, ip: IP, network: str | None = None) -> NetworkManager:
        """The manager of the network that gives an address."""
        if network is None:
            self.open()
            network = self.view().network_of(ip)
            if network is None:
                raise OutOfRangeError(self.view().why(ip))
        return self.manager(network)

    def held_by(
        self, owner: str, network: str | None, ip: str | None, key: str | None
    ) -> list[Held]:
        """What an owner holds that is called so. Raises NotAllocatedError where nothing is."""
        self.open()
        plain = None if ip is None else as_ip(ip)
        held = self.view().find(owner, network=network)
        found = [
            one
            for one in held
            if (plain is None or plain in one.ips) and (key is None or one.key == key)
        ]
        if not found:
            what = " ".join(
                part
                for part in (
                    f" {plain}" if plain else "",
                    f" with key {key}" if key else "",
                    f" in network {network}" if network else "",
                )
                if part
            )
            rest = f", but {_listed([str(one.ip) for one in held])}" if held else ""
            raise NotAllocatedError(f"{owner} holds nothing{what}{rest}")
        return found

    def one_of(
        self, owner: str, network: str | None = None, ip: str | None = None, key: str | None = None
    ) -> NetworkInterface:
        """The one interface that is meant. Raises InvalidValueError where it may be several."""
        found = self.held_by(owner, network, ip, key)
        if len(found) > 1:
            raise InvalidValueError(
                f"{owner} holds {len(found)} addresses, {_listed([str(one.ip) for one in found])}: "
                "name one by its address, key or network"
            )
        return self.interface_of(found[0])

    def interface_of(self, held: Held) -> NetworkInterface:
        """The interface of what a view has found. Raises NotAllocatedError where it has ended."""
        manager = self.manager(held.network)
        for interface in manager.find(held.owner):
            if interface.generation == held.generation:
                return interface
        raise NotAllocatedError(f"{held.ip} was released meanwhile")

    def answer(self, interface: NetworkInterface) -> answers.Lease:
        """All there is to say of an interface."""
        found = self.view().lease_of(interface.network, interface.ip, interface.generation)
        if found is not None:
            return describe.lease(*found)
        raise NotAllocatedError(f"{interface.ip} was released meanwhile")

    def _ensure_bridge(self, networks: Networks, name: str) -> bool:
        """Make the bridge of a network where it is missing; whether it was."""
        info = networks.get(name)
        if info is None or info.bridge is None or info.backend == "null":
            return False
        if is_there(info.bridge):
            return False
        self._make_bridge(info.bridge, name, info.subnets)
        return True


def _listed(names: list[str]) -> str:
    """The first of many, in words."""
    first = ", ".join(names[:8])
    return first if len(names) <= 8 else f"{first} and {len(names) - 8} more"

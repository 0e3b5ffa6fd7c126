"""What is wrong with a store and with each network's part of the kernel: looked at, not set up.

A manager makes its network's fixed part in the kernel when it opens. Here nothing is made, so
that a check changes nothing, and says also what a manager would mend at once.
"""

from __future__ import annotations

from netalloc.errors import NetallocError
from netalloc.host.made_bridges import is_there
from netalloc.ipam.check import check as check_records
from netalloc.ipam.networks import find, networks
from netalloc.manager.assembly import REAL, mappings_of, service_of
from netalloc.manager.host_store import HostStore
from netalloc.manager.undo import Teardown
from netalloc.manager.upkeep import check_kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from netalloc.manager.view import NetworkView
    from netalloc.model import PortMapping
    from netalloc.store.protocol import Store
    from netalloc.store.records import Network


def differences(store: Store) -> list[str]:
    """Every invariant that does not hold, and where the kernel differs, in words. O(held)."""
    damage = store.check()
    if damage:
        return damage  # of a damaged file nothing further can be said with certainty
    found = dict.fromkeys(store.survey(lambda tx: list(check_records(tx))))
    for network in store.view(networks):
        if network.backend in REAL:
            found.update(dict.fromkeys(kernel_differences(store, network)))
    return list(found)


def record_differences(view: NetworkView) -> list[str]:
    """What is wrong with the records alone, for which a right to read is enough."""
    return list(dict.fromkeys(view.read(lambda tx: list(check_records(tx)))))


def mappings_in_kernel(store: Store, name: str) -> frozenset[PortMapping] | None:
    """What the kernel has of a network; None with the null backend, where there is no kernel."""
    network = store.view(lambda tx: find(tx, name))
    if network is None or network.backend not in REAL:
        return None
    made = Teardown()
    try:
        return frozenset(mappings_of(network, None, store, made).present())
    finally:
        made.close()


def kernel_differences(store: Store, network: Network) -> list[str]:
    """Where the kernel's part of one network differs from what its records say."""
    if network.bridge is not None and not is_there(network.bridge):
        return [f"bridge {network.bridge} of network {network.name} is not there"]
    host, made = HostStore(store, owned=False), Teardown()
    try:
        mappings = mappings_of(network, None, store, made)
        service = service_of(host, network, mappings, None)
        made.push(service.holds.close)
        found = check_kernel(service)
        if not found and not mappings.stands(service.survey(service.publications.desired)):
            return [f"rules of network {network.name} are missing in the kernel"]
        return found
    except NetallocError as error:
        return [f"network {network.name} cannot be compared with the kernel: {error}"]
    finally:
        made.close()
        host.close()

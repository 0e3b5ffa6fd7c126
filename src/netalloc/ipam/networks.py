"""The networks of a store: which one is a bridge's, and none that overlaps another."""

from ipaddress import ip_interface

from netalloc._alloc import IPAllocator
from netalloc.errors import InUseError
from netalloc.store.protocol import Store, Transaction
from netalloc.store.records import Cooldown, LastHolder, Lease, Network, Reservation


def spec(plan: IPAllocator) -> str:
    """The network as its gateway would write it."""
    first = plan.gateway if plan.gateway is not None else plan.network.network_address
    return f"{first}/{plan.network.prefixlen}"


def written(network: Network) -> str:
    """The subnet of a record, of whichever family."""
    return network.subnet or network.subnet6 or ""


def register(store: Store, bridge: str, plan: IPAllocator) -> int:
    """The number of a bridge's network in the store; a new one is entered for good.

    The same network may be registered by any number of processes. Raises InUseError where
    it overlaps the network of another bridge, or where the bridge is registered with
    another network or gateway that still has holders.
    """
    tx = store.read()
    try:
        found = _registered(tx, bridge)
    finally:
        tx.rollback()
    if found is not None and written(found) == spec(plan):
        return found.number
    tx = store.begin("register", durable=True)
    try:
        number = _enter(tx, bridge, plan)
    except BaseException:
        tx.rollback()
        raise
    tx.commit()
    return number


def _registered(tx: Transaction, bridge: str) -> Network | None:
    found = tx.table(Network).where("name", equal=(bridge,))
    return found[0] if found else None


def _enter(tx: Transaction, bridge: str, plan: IPAllocator) -> int:
    networks = tx.table(Network)
    found = _registered(tx, bridge)
    if found is not None:
        if written(found) == spec(plan):
            return found.number
        _forget(tx, found, spec(plan))
    for other in networks.all():
        theirs = ip_interface(written(other)).network
        if theirs.version == plan.network.version and theirs.overlaps(plan.network):
            raise InUseError(
                f"{plan.network} of {bridge} overlaps {theirs} of {other.bridge}", other.bridge
            )
    number = tx.next("network")
    subnet, subnet6 = (spec(plan), None) if plan.network.version == 4 else (None, spec(plan))
    networks.add((Network(number, bridge, bridge, "bridge", subnet, subnet6, "", "", "", 0, 0, 0),))
    return number


def _forget(tx: Transaction, network: Network, wanted: str) -> None:
    number = (network.number,)
    for held, how in (
        (len(tx.table(Lease).where("network", equal=number)), "leased"),
        (len(tx.table(Reservation).where("network", equal=number)), "reserved"),
    ):
        if held:
            raise InUseError(
                f"{network.bridge} is registered with {written(network)}, not {wanted}, and has "
                f"{held} addresses {how} there",
                network.bridge,
            )
    cooling, former = tx.table(Cooldown), tx.table(LastHolder)
    cooling.remove(cooling.where("network", equal=number))
    former.remove(former.where("network", equal=number))
    for name in tx.names(f"addresses/{network.number}"):
        if name == f"addresses/{network.number}":
            tx.drop(name)
    tx.table(Network).remove((network,))

"""Why an address cannot be had, in words."""

from __future__ import annotations

from netalloc.errors import ExhaustedError, StoreError
from netalloc.ipam.clock import SECOND
from netalloc.store.records import Cooldown, Reservation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from netalloc.ipam.addresses import Addresses
    from netalloc.store.protocol import StoredBitmap, Transaction

_COUNTED = 10  # of those that cool down: a refusal costs the same, however many there are


def explain(addresses: Addresses, tx: Transaction, ordinal: int) -> None:
    """Raise StoreError for a bit that is set without any record behind it."""
    subnets, number = addresses.subnets, addresses.number
    if not subnets.gives(ordinal):
        return
    kept = tx.table(Reservation).get(number, ordinal)
    if kept is not None or tx.table(Cooldown).get(number, ordinal) is not None:
        return
    raise StoreError(
        f"{subnets.address(ordinal)} is marked as taken, but no record says by whom: "
        "check() says what else is wrong, repair() mends it"
    )


def exhausted(
    addresses: Addresses, tx: Transaction, what: str, bitmap: StoredBitmap
) -> ExhaustedError:
    """The error where nothing is free: how many are, and how many cool down, up to ten."""
    cooling = tx.table(Cooldown).where("network", equal=(addresses.number,), limit=_COUNTED + 1)
    free, subnets = bitmap.size - len(bitmap), addresses.subnets
    text = f"no {what} left in {subnets.networks}: {free} of {subnets.capacity} are free"
    if cooling:
        many = f"more than {_COUNTED}" if len(cooling) > _COUNTED else len(cooling)
        left = (cooling[0].ready_ns - addresses.clock()) / SECOND
        text += f", {many} are cooling down, the first is ready in {left:.1f} s"
    return ExhaustedError(text)


def for_owner(owner: str | None) -> str:
    """What an address is reserved for, as an error ends."""
    return f" for {owner}" if owner is not None else ", for no owner"

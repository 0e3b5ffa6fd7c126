"""What differs between the maps of a table and what is desired, of our own elements alone."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from netalloc.errors import InUseError
from netalloc.family import Family
from netalloc.model import PortMapping
from netalloc.portmap.desired import describe
from netalloc.portmap.nftables import batch, elements, maps
from netalloc.portmap.nftables.maps import MapType
from netalloc.portmap.nftables.ownership import Ownership
from netalloc.portmap.nftables.table import overlap


class Repair(NamedTuple):
    """What makes the maps right, and what that adds, removes and finds in them besides."""

    steps: list[batch.Step]
    added: list[PortMapping]
    removed: list[PortMapping]
    foreign: list[str]


def repair(
    table: str,
    wanted: elements.Held,
    found: dict[str, dict[bytes, bytes]],
    own: Ownership,
    displaces: Callable[[Family, int], bool],
) -> Repair:
    """The repair of what `found` has; `own` says which of it is ours.

    `displaces` says whether an element of another goes where it is in the way of a desired one,
    by the address that it leads to: InUseError where it does not.
    """
    add: elements.Held = {}
    extra: dict[str, set[bytes]] = {}
    removed: list[PortMapping] = []
    foreign: list[str] = []
    for name, held in wanted.items():
        if name not in found:
            own.check(held.values())  # refused: it is not of our families
    for name, present in found.items():
        map_ = maps.MAP_TYPES[name]
        held = wanted.get(name, {})
        wrong = _wrongly_marked(held, present)
        if held.keys() == present.keys() and not wrong:
            continue
        missing = {e: m for e, m in held.items() if e not in present or e in wrong}
        own.check(missing.values())
        strange = present.keys() - held.keys()
        surplus = own.of(strange, map_) | wrong
        for entry in _in_the_way(missing, strange - surplus, map_):
            if not displaces(map_.family, int.from_bytes(entry[map_.address], "big")):
                _refuse(entry, present[entry], map_)
            surplus.add(entry)
        add[name], extra[name] = missing, surplus
        unknown = elements.decode_all({e: present[e] for e in surplus}, map_, removed)
        foreign += [describe_foreign(name, entry) for entry in unknown]
    steps = batch.deletions(table, extra) + batch.additions(table, add)
    added = dict.fromkeys(m for held in add.values() for m in held.values())
    return Repair(steps, list(added), removed, foreign)


def describe_foreign(name: str, entry: bytes) -> str:
    """An entry of a map that stands for no mapping, in words."""
    return f"map {name} held {entry.hex()}, which is no whole mapping"


def _in_the_way(
    missing: dict[bytes, PortMapping], others: Iterable[bytes], map_: MapType
) -> list[bytes]:
    """Those of others that the kernel would refuse what is missing for."""
    if not missing or not others:
        return []
    if not map_.block:
        size = map_.key_size
        keys = {entry[:size] for entry in missing}
        return [entry for entry in others if entry[:size] in keys]
    there = [(entry, elements.decode(entry, b"", map_)) for entry in others]
    return [
        entry
        for entry, block in there
        if block is not None and any(overlap(block, mapping) for mapping in missing.values())
    ]


def _refuse(entry: bytes, rest: bytes, map_: MapType) -> None:
    there = elements.decode(entry, rest, map_)
    what = entry.hex() if there is None else describe(there)
    raise InUseError(
        f"{what} is of another network of the same table, and in the way",
        None if there is None else there.owner or str(there.dest[0]),
    )


def _wrongly_marked(held: dict[bytes, PortMapping], present: dict[bytes, bytes]) -> set[bytes]:
    """The entries that lead where they should and are no part, or one, of a divided block."""
    suspects = {entry for entry, rest in present.items() if rest and elements.mark_of(rest)}
    suspects.update([entry for entry, mapping in held.items() if mapping.count > 1])
    return {
        entry
        for entry in suspects
        if entry in held
        and entry in present
        and elements.mark(held[entry]) != elements.mark_of(present[entry])
    }

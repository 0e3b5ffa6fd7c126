"""nftables transactions: several messages that the kernel takes together or not at all."""

from collections.abc import Callable, Collection, Iterable, Sequence
from collections.abc import Mapping as MappingView
from typing import Any, Final, NamedTuple

from netalloc.host.netlink import NetlinkError, NetlinkSocket
from netalloc.host.netlink_messages import (
    ACK,
    CREATE,
    EXCLUSIVE,
    attribute,
    attributes,
    message,
)
from netalloc.portmap.nftables import elements, maps

SUBSYSTEM: Final = 10 << 8  # NFNL_SUBSYS_NFTABLES
NEW_ELEMENT, GET_ELEMENT, DELETE_ELEMENT = (SUBSYSTEM | kind for kind in (12, 13, 14))

_GET_GENERATION: Final = SUBSYSTEM | 16
_GENERATION_ID = 1
_BEGIN, _END = 0x10, 0x11
_ENVELOPE: Final = b"\0\0\0\x0a"  # struct nfgenmsg: the subsystem, in network order
# Around a transaction that is not asked where in it an error was.
BEGINNING, ENDING = message(_BEGIN, 0, 0, _ENVELOPE), message(_END, 0, 0, _ENVELOPE)

# Of each map by its name: the entries that a change is about.
Entries = MappingView[str, Collection[bytes]]


class Step(NamedTuple):
    """One message of a transaction; `entries` are those its elements stand for."""

    kind: int
    flags: int
    body: bytes
    entries: Sequence[bytes] = ()
    elements: Sequence[bytes] = ()


class RefusedError(NetlinkError):
    """The kernel refused a transaction at `step`, and at `entry` where it says so much."""

    def __init__(self, error: NetlinkError, step: Step | None, entry: bytes | None) -> None:
        super().__init__(error.errno, error.seq, error.offset, error.text)
        self.step = step
        self.entry = entry


def additions(table: str, add: elements.Held) -> list[Step]:
    """The steps that add; a key that is present ends the transaction."""
    return _steps(table, NEW_ELEMENT, CREATE | EXCLUSIVE, add, elements.encode)


def removals(table: str, remove: Entries) -> list[Step]:
    """The steps that remove these very elements.

    A deletion goes by the key alone and ignores the data, so the same element is added
    first: harmless where it is there, and the end of the transaction where its key leads
    elsewhere by now.
    """
    same = _steps(table, NEW_ELEMENT, CREATE, remove, elements.encode_plain)
    return same + deletions(table, remove)


def deletions(table: str, remove: Entries) -> list[Step]:
    """The steps that remove whatever has the keys of these entries."""
    return _steps(table, DELETE_ELEMENT, 0, remove, elements.encode_keys)


def _steps(
    table: str,
    kind: int,
    flags: int,
    held: MappingView[str, Any],
    make: Callable[[Any, maps.MapType], list[bytes]],
) -> list[Step]:
    steps = []
    for name, entries in held.items():
        if not entries:
            continue
        map_ = maps.MAP_TYPES[name]
        order = list(entries)
        for piece in elements.split(make(entries, map_)):
            body = elements.body(table, name, piece)
            steps.append(Step(kind, flags, body, order[: len(piece)], piece))
            del order[: len(piece)]
    return steps


def size(steps: Iterable[Step]) -> int:
    """Bytes of the transaction: the steps, and the two messages that enclose them."""
    return 40 + sum([16 + len(step.body) for step in steps])


def generation(netlink: NetlinkSocket) -> int:
    """The number that every change of any table of the network namespace increments."""
    (answer,) = netlink.call(_GET_GENERATION, elements.ANY_FAMILY)
    return int.from_bytes(attributes(answer, 4)[_GENERATION_ID], "big")


def send(netlink: NetlinkSocket, steps: Sequence[Step], seen: int | None = None) -> None:
    """Make it so, in one send; nothing has changed when it raises RefusedError.

    With `seen` the kernel refuses (ERESTART) when any table has changed since that generation:
    what the steps were concluded from is still so when they are taken.
    """
    begin = seq = netlink.sequence(len(steps) + 2)
    last = begin + len(steps)
    opening = _ENVELOPE
    if seen is not None:
        opening += attribute(_GENERATION_ID, seen.to_bytes(4, "big"))
    batch = [message(_BEGIN, 0, begin, opening)]
    for kind, flags, body, *_ in steps:
        seq += 1
        batch.append(message(kind, flags | ACK if seq == last else flags, seq, body))
    batch.append(message(_END, 0, last + 1, _ENVELOPE))
    try:
        netlink.transact(b"".join(batch), begin, last)
    except NetlinkError as error:
        if error.seq <= begin:  # the transaction as a whole
            raise RefusedError(error, None, None) from None
        refused = steps[error.seq - begin - 1]
        raise RefusedError(error, refused, _culprit(refused, error.offset)) from None


def _culprit(step: Step, offset: int | None) -> bytes | None:
    """The entry whose element starts at this offset of the step's message."""
    if offset is None:
        return None
    start = 16 + len(step.body) - sum(map(len, step.elements))
    for entry, element in zip(step.entries, step.elements, strict=True):
        if start == offset:
            return entry
        start += len(element)
    return None

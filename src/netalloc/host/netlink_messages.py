"""The bytes of netlink messages and of their attributes: linux/netlink.h."""

import struct
from collections.abc import Iterable, Iterator

ERROR = 2
DONE = 3

REQUEST = 0x1
ACK = 0x4
DUMP_INTERRUPTED = 0x10
EXCLUSIVE = 0x200
CREATE = 0x400
DUMP = 0x300

_NESTED_OR_NET_ORDER = 0xC000

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")


def message(kind: int, flags: int, seq: int, body: bytes) -> bytes:
    """One netlink message; `body` starts with the family's own header."""
    return _HEADER.pack(16 + len(body), kind, flags | REQUEST, seq, 0) + body


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to four bytes; the payload is at most 65,531 bytes.

    >>> attribute(1, b"ab").hex()
    '0600010061620000'
    """
    size = len(payload)
    return _ATTRIBUTE.pack(4 + size, kind) + payload + b"\0" * (-size & 3)


def text(kind: int, value: str) -> bytes:
    """A string attribute with the NUL that the kernel wants."""
    return attribute(kind, value.encode() + b"\0")


def attributes(data: bytes, start: int = 0, stop: int | None = None) -> dict[int, bytes]:
    """The attributes in data[start:stop] by number, flag bits dropped; the last of a kind wins."""
    found: dict[int, bytes] = {}
    stop = len(data) if stop is None else stop
    while start + 4 <= stop:
        size, kind = _ATTRIBUTE.unpack_from(data, start)
        if size < 4:
            break
        found[kind & ~_NESTED_OR_NET_ORDER] = data[start + 4 : start + size]
        start += size + 3 & ~3
    return found


def messages(data: bytes) -> Iterable[tuple[int, int, int, int, int]]:
    """The messages of one datagram: kind, flags, seq, and where the body starts and stops."""
    if len(data) >= 16:
        size, kind, flags, seq, _ = _HEADER.unpack_from(data)
        if size == len(data):  # as all answers but those to dumps: a third of the time
            return ((kind, flags, seq, 16, size),)
    return _messages(data)


def _messages(data: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    start = 0
    while start + 16 <= len(data):
        size, kind, flags, seq, _ = _HEADER.unpack_from(data, start)
        if size < 16:
            break
        yield kind, flags, seq, start + 16, min(start + size, len(data))
        start += size + 3 & ~3

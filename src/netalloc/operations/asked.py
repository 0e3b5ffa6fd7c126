"""What a question is about: an address, a host port ("tcp/8080"), or else an owner."""

from __future__ import annotations

import re

from netalloc.address_values import as_ip
from netalloc.errors import InvalidValueError
from netalloc.light import NamedTuple
from netalloc.values import as_port, as_protocol, as_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from netalloc.address_values import IP

PROTOCOLS = ("tcp", "udp", "sctp")


class Asked(NamedTuple):
    """`kind` is "address", "port" or "owner"; `value` is plain, and fit for NetworkView."""

    kind: str
    text: str
    ip: IP | None = None
    protocol: str = ""
    port: int = 0


def asked(text: str) -> Asked:
    """What a text names. A port is written tcp/8080 or 8080/tcp. Raises InvalidValueError.

    An owner that is called like an address or a port is asked for as owner=NAME.

    >>> asked("10.88.0.7").kind, asked("8080/udp").text, asked("web").kind, asked("owner=10.0.0.1")
    ('address', 'udp/8080', 'owner', Asked(kind='owner', text='10.0.0.1', ip=None, protocol='', \
port=0))
    """
    plain = as_text(text, "question")
    if plain.startswith("owner="):
        return Asked("owner", as_text(plain.removeprefix("owner="), "owner"))
    first, slash, second = plain.partition("/")
    if slash:
        if first.isascii() and first.isdigit():
            first, second = second, first
        if first.lower() in PROTOCOLS:
            if not (second.isascii() and second.isdigit()):
                raise InvalidValueError(f"port {plain!r} is not a protocol and a number: tcp/8080")
            protocol, port = as_protocol(first.lower()), as_port(int(second))
            return Asked("port", f"{protocol}/{port}", None, protocol, port)
    if set(plain) <= set("0123456789abcdefABCDEF.:") and ("." in plain or ":" in plain):
        try:
            ip = as_ip(plain)
        except InvalidValueError:
            if re.fullmatch(r"\d+(\.\d+){3}", plain):
                raise  # a slip of the pen, not an owner
            return Asked("owner", plain)
        return Asked("address", str(ip), ip)
    return Asked("owner", plain)

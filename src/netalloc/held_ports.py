"""Which host ports are held, and on which of the host's addresses.

A port is held on every address of the host (None), on every one of a family (0.0.0.0, ::), or
on one. As with sockets, None conflicts with everything of the same protocol and number, and
0.0.0.0 and :: with every address of their own family; two different addresses do not conflict.
Per protocol there are these kinds of bitmaps, in which the ordinal of a port is its number,
whatever the range that it was taken from (in `more` and `more6` its first digit):

    every     ports held on None
    used      ports held on anything: what None must keep clear of
    on/<ip>   ports held on that address, or on 0.0.0.0 or ::; one that is taken on an address must
              keep clear of `every` and of its family's wildcard too
    more      for each port the number of addresses that hold it, less one, in 32 binary digits:
              so releasing one of a thousand looks at a word, not at a thousand bitmaps

and, as long as anything is held on IPv6 addresses, so that IPv4 alone is spared them:

    used6     ports held on addresses of IPv6 or on ::
    more6     the number of these, as `more` has it of all
    only6     ports of used6 that are held on nothing of IPv4: 0.0.0.0 can have these
"""

from __future__ import annotations

from netalloc.address_values import IP
from netalloc.port_bitmaps import (
    ANY_V4,
    ANY_V6,
    DIGITS,
    NAMED,
    SIZE,
    Bitmaps,
    Held,
    InUseOfIPv4,
    Ordinals,
    addresses_with,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_FAMILY_WORDS = {ANY_V4: "every address of IPv4", ANY_V6: "every address of IPv6"}


def words(ip: IP | None) -> str:
    """What a port is asked for on."""
    return "every address" if ip is None else _FAMILY_WORDS.get(str(ip), str(ip))


class HeldPorts:
    """The ports that are held, kept in bitmaps. What is asked for is checked and plain already."""

    def __init__(self, bitmaps: Bitmaps) -> None:
        self._bitmaps = bitmaps

    def is_taken(self, port: int, protocol: str, ip: IP | None) -> bool:
        """Whether the port is held so that it cannot be had."""
        if port not in self.bitmap(protocol, "used"):
            return False
        if ip is None or port in self.bitmap(protocol, "every"):
            return True
        return any(port in pool for pool in self._of_family(protocol, ip))

    def where(self, port: int, protocol: str, ip: IP | None) -> str:
        """Where a port that cannot be had is held, in words."""
        if port in self.bitmap(protocol, "every"):
            return "every address"
        if ip is not None and int(ip):
            wildcard = ANY_V4 if ip.version == 4 else ANY_V6
            everywhere = self._known(protocol, f"on/{wildcard}")
            held_there = everywhere is not None and port in everywhere
            return _FAMILY_WORDS[wildcard] if held_there else str(ip)
        on: list[str] = []
        if addresses_with(self._bitmaps, port, protocol) <= NAMED:
            held = self._bitmaps.holders(port, protocol)
            on += [one for one in held if ip is None or (":" in one) == (ip.version == 6)]
        if on == [str(ip)]:
            return words(ip)
        where = "single addresses of the host"
        if 0 < len(on) <= NAMED:
            where = ", ".join([_FAMILY_WORDS.get(one, one) for one in on])
        return f"{where}, so {words(ip)} cannot be had"

    def take(
        self,
        ports: Iterable[int],
        protocol: str,
        ip: IP | None,
        used: Ordinals | None = None,
    ) -> None:
        """Hold ports that can be had; `used`: that bitmap, where it is at hand."""
        if used is None:
            used = self.bitmap(protocol, "used")
        held = self.bitmap(protocol, "every" if ip is None else f"on/{ip}")
        if ip is None:
            for port in ports:
                held.reserve(port)
                used.reserve(port)
            return
        for port in ports:
            held.reserve(port)
            shared = port in used
            if shared:
                self._one_more(port, protocol)
            else:
                used.reserve(port)
            if ip.version == 6:
                self._hold6(port, protocol, shared)
            elif shared:
                only6 = self._known(protocol, "only6")
                if only6 is not None and port in only6:
                    only6.release(port)

    def on(self, protocol: str, ip: IP | None) -> Ordinals | None:
        """The ports held in that very way; None where there are none."""
        return self.bitmap(protocol, "every") if ip is None else self._known(protocol, f"on/{ip}")

    def give_back(
        self, port: int, protocol: str, ip: IP | None, held: Ordinals, used: Ordinals
    ) -> None:
        """Hold a port no longer that is in `held`, which is `on` of that; `used`: that bitmap."""
        held.release(port)
        if ip is None:
            used.release(port)
            return
        if not len(held):
            self._bitmaps.drop(f"ports/{protocol}/on/{ip}")
        shared = self._one_less(port, protocol)
        if not shared:
            used.release(port)
        if ip.version == 6:
            self._release6(port, protocol)
        elif shared and self._bitmaps.known(f"ports/{protocol}/used6"):
            self._note_only6(port, protocol)

    def _hold6(self, port: int, protocol: str, shared: bool) -> None:
        """Note that a port is held on one more address of IPv6; `shared`: and on others."""
        used6 = self.bitmap(protocol, "used6")
        if port in used6:
            self._one_more(port, protocol, "more6")
            return
        used6.reserve(port)
        if not shared:
            self.bitmap(protocol, "only6").reserve(port)

    def _release6(self, port: int, protocol: str) -> None:
        """Note that a port is held on one address of IPv6 less."""
        if self._one_less(port, protocol, "more6"):
            return
        used6 = self.bitmap(protocol, "used6")
        used6.release(port)
        only6 = self._known(protocol, "only6")
        if only6 is not None and port in only6:
            only6.release(port)
        if not len(used6):
            for kind in ("used6", "more6", "only6"):
                if self._bitmaps.known(f"ports/{protocol}/{kind}"):
                    self._bitmaps.drop(f"ports/{protocol}/{kind}")

    def _note_only6(self, port: int, protocol: str) -> None:
        """Note it where what still holds a port is all of IPv6."""
        if port not in self.bitmap(protocol, "used6"):
            return
        of_ipv6 = addresses_with(self._bitmaps, port, protocol, "more6")
        if addresses_with(self._bitmaps, port, protocol) == of_ipv6:
            self.bitmap(protocol, "only6").reserve(port)

    def _one_more(self, port: int, protocol: str, of: str = "more") -> None:
        """Count one more of the addresses that hold a port: a binary counter, carry and all."""
        more = self._more(protocol, of)
        digit = port * DIGITS
        while digit in more:
            more.release(digit)
            digit += 1
        more.reserve(digit)

    def _one_less(self, port: int, protocol: str, of: str = "more") -> bool:
        """Count one less; False where that was the only one."""
        if not self._bitmaps.known(f"ports/{protocol}/{of}"):
            return False
        more = self._more(protocol, of)
        digit = first = port * DIGITS
        found = more.next_set(first)
        if found is None or found >= first + DIGITS:
            return False
        more.release(found)
        while digit < found:  # a borrow
            more.reserve(digit)
            digit += 1
        return True

    def _more(self, protocol: str, of: str) -> Ordinals:
        return self._bitmaps.bitmap(f"ports/{protocol}/{of}", SIZE * DIGITS)

    def pools(self, protocol: str, ip: IP | None) -> list[Held]:
        """What a port must be clear of to be taken there."""
        if ip is None:
            return [self.bitmap(protocol, "used")]
        of_family = self._of_family(protocol, ip)
        if ip.version == 4 and not int(ip):
            return of_family  # `every` is among them
        return [self.bitmap(protocol, "every"), *of_family]

    def _of_family(self, protocol: str, ip: IP) -> list[Held]:
        """What besides `every` a port on an address, or on every one of a family, is clear of."""
        if int(ip):
            wildcard = ANY_V4 if ip.version == 4 else ANY_V6
            known = self._known(protocol, f"on/{ip}"), self._known(protocol, f"on/{wildcard}")
            return [one for one in known if one is not None]
        if ip.version == 6:
            used6 = self._known(protocol, "used6")
            return [] if used6 is None else [used6]
        used, only6 = self.bitmap(protocol, "used"), self._known(protocol, "only6")
        return [used] if only6 is None else [InUseOfIPv4(used, only6)]

    def bitmap(self, protocol: str, kind: str) -> Ordinals:
        """The bitmap of that kind, made empty when there is none."""
        return self._bitmaps.bitmap(f"ports/{protocol}/{kind}", SIZE)

    def _known(self, protocol: str, kind: str) -> Ordinals | None:
        """The bitmap of that kind where there is one."""
        name = f"ports/{protocol}/{kind}"
        return self._bitmaps.bitmap(name, SIZE) if self._bitmaps.known(name) else None

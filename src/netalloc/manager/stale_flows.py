"""The flows that a change makes stale: noted before its commit, flushed after it.

The kernel looks at all its flows for that, milliseconds where there are many. So it is not done
in the change, under the store's lock, but by the caller whose change it is, before its call
returns. host/owed_flows.py says what keeps the next holder of an address or a port apart from
flows that are still to go.
"""

from collections.abc import Sequence
from functools import partial
from ipaddress import IPv4Address, IPv6Address

from netalloc.host.owed_flows import ADDED, ENDED, REMOVED, OwedFlows, OwedFlush
from netalloc.ipam.change import Change
from netalloc.model import PortMapping


class StaleFlows:
    """What the changes of one manager owe."""

    def __init__(self, owed: OwedFlows) -> None:
        self._owed = owed

    def got(
        self,
        made: Change,
        addresses: Sequence[IPv4Address | IPv6Address],
        mappings: Sequence[PortMapping],
    ) -> None:
        """A change got these addresses, and publishes these ports."""
        udp = [mapping for mapping in mappings if mapping.protocol == "udp"]
        if udp:
            self._owe(made, ADDED, udp)
        made.after.append(partial(self._owed.wait, map(int, addresses), mappings))

    def gone(self, made: Change, mappings: Sequence[PortMapping], *, ended: bool) -> None:
        """A change takes these mappings away; `ended`: and their containers' addresses."""
        if mappings:
            self._owe(made, ENDED if ended else REMOVED, mappings)

    def finish(self) -> None:
        """Flush what dead processes, and interrupted calls of this one, have left."""
        self._owed.finish()

    def _owe(self, made: Change, kind: int, mappings: Sequence[PortMapping]) -> None:
        owed = OwedFlush(self._owed, kind, mappings)
        made.undo.append(owed.cancel)
        owed.note()
        made.after.append(owed.settle)

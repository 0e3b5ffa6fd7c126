"""Forgetting stale flows over IPv6, which the kernel cannot be had to pick by address.

Its filters compare addresses of IPv6 inverted, at least from Linux 5.8 to 6.18: by the right
address they spare the flow, and take all others. So no address is ever in a filter here. What
may be stale is listed, by protocol and port, or because it was translated; its addresses are
compared here, and it is deleted by its name. Where the host has few flows, they are read first
as they are shown, and as a rule nothing is to be listed.

A listing takes as long as two or three deletions by filter, one of all that was translated up to
thirty, with 50,000 of them.
"""

from collections.abc import Collection, Iterable, Iterator
from typing import TypeAlias

from netalloc.family import V6
from netalloc.host.flow_messages import (
    DELETE,
    GET,
    IPV6,
    NUMBERS,
    TRANSLATED,
    Flow,
    among,
    by_port,
    is_at,
    leads,
    sent_to,
)
from netalloc.host.lazy_socket import LazySocket
from netalloc.host.local_addresses import is_local
from netalloc.host.shown_flows import ShownFlow
from netalloc.model import PortMapping

Wanted: TypeAlias = dict[tuple[int, int], list[PortMapping]]  # by protocol number and port
_APART = 8  # ports up to which each is listed by itself
_AT_ONCE = 100  # deletions in one send, whose answers fit into the socket's buffer


class IPv6Flows:
    """The flows over IPv6, asked over the sockets of `conntrack.Flows`.

    `shown` is all of them, where the host's flows are few and shown, else None.
    """

    def __init__(self, netlink: LazySocket, routes: LazySocket) -> None:
        self._socket, self._routes = netlink, routes

    def flush(
        self, mappings: Collection[PortMapping], shown: list[ShownFlow] | None, *, added: bool
    ) -> None:
        """Forget those that these mappings, just added or just removed, have made stale.

        Of mappings that were added: all of them of udp.
        """
        wanted = by_port(mappings)
        if shown is not None:
            there = {(flow.number, flow.port) for flow in shown}
            wanted = {key: some for key, some in wanted.items() if key in there}
        if wanted:
            self._delete(self._passing(wanted) if added else self._led(wanted))

    def _led(self, wanted: Wanted) -> Iterator[Flow]:
        """Those that went through one of the mappings."""
        questions = [IPV6 + TRANSLATED]
        if len(wanted) <= _APART:
            questions = [sent_to(*key, header=IPV6, translated_only=True) for key in wanted]
        for question in questions:
            for flow in among(self._list(question), wanted, V6.af):
                if any(leads(flow, mapping) for mapping in wanted[flow.number, flow.port]):
                    yield flow

    def _passing(self, wanted: Wanted) -> Iterator[Flow]:
        """Those of udp that pass by the mapping of their port, and are sent to the host."""
        port = next(iter(wanted))[1] if len(wanted) == 1 else None
        known: dict[bytes, bool] = {}
        for flow in among(self._list(sent_to(NUMBERS["udp"], port, header=IPV6)), wanted, V6.af):
            at = [m for m in wanted[flow.number, flow.port] if is_at(flow, m)]
            if not at or leads(flow, at[0]):
                continue
            if flow.ip not in known:
                known[flow.ip] = is_local(self._routes.get(), flow.ip)
            if known[flow.ip]:
                yield flow

    def _list(self, question: bytes) -> list[bytes]:
        return self._socket.get().dump(GET, question)[0]

    def _delete(self, flows: Iterable[Flow]) -> None:
        names = [flow.name for flow in flows]
        for i in range(0, len(names), _AT_ONCE):  # one that has ended by itself is passed over
            self._socket.get().call_each(DELETE, names[i : i + _AT_ONCE])

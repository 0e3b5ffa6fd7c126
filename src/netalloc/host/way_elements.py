"""Which containers are reached by their network's way, and putting them behind it.

Three elements for each, 10 µs and one transaction for many: its MAC address, its interface, and
that it is there. Without them nothing reaches a container by IPv6.
"""

import errno
import struct
from collections.abc import Iterable, Sequence

from netalloc.errors import InterfaceError
from netalloc.family import V6
from netalloc.host import attached, network_way, nf_tables, rtnetlink
from netalloc.host import way_tables as tables
from netalloc.host.endpoints import Endpoint
from netalloc.host.lazy_socket import LazySocket
from netalloc.host.netlink import NETLINK_NETFILTER, NetlinkError, NetlinkSocket, explaining

_U32 = struct.Struct("=I")
_ASKED = 32  # answers that have room to wait
_PIECE = 500  # containers in one transaction
_ABSENT = (errno.ENOENT, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT)
_TAKEN = (errno.EBUSY, errno.EEXIST)


class WayElements:
    """The elements of one network's containers, over a socket that is kept. Safe for threads.

    It belongs to the network namespace in which it was made.
    """

    def __init__(self, group: int) -> None:
        self._group = group
        self._socket = LazySocket(NETLINK_NETFILTER)

    def close(self) -> None:
        """Give back the socket; the next call opens another one."""
        self._socket.close()

    def served(self, host: NetlinkSocket, wanted: Sequence[tuple[Endpoint, int]]) -> frozenset[int]:
        """The indexes of those that the way leads to; all others need a route of their own.

        Each is given with its MTU. One that has another than the device needs a route, for it
        tells the host how large a packet may be. So does one whose address has a route of
        another program's. 6 µs each. The socket for `enter` is open then.
        """
        some = [(one, mtu) for one, mtu in wanted if one.addresses[1] is not None]
        if not some or not network_way.is_networks(self._group):
            return frozenset()
        index = network_way.index_of(self._group)
        device = attached.look(host, [index]).get(index)
        if device is None or not device.is_up or device.group != self._group:
            return frozenset()
        same = [one for one, mtu in some if mtu == device.mtu]
        found = frozenset(
            one.index for one, by in zip(same, _by(host, same), strict=True) if by == index
        )
        if found:
            self._socket.get()
        return found

    def enter(self, endpoints: Iterable[Endpoint]) -> None:
        """Have the way lead to these; those that it leads to are no error.

        Raises InterfaceError where it leads to another interface that there is, NetlinkError
        (ENOENT) where there is no way any more.
        """
        for some in _pieces(endpoints):
            self._enter(some)

    def _enter(self, some: Sequence[Endpoint]) -> None:
        try:
            self._send(tables.additions([_entry(one) for one in some]))
        except NetlinkError as error:
            if error.errno not in _TAKEN:
                raise
            for one in some:
                self._enter_anew(one)

    def cut_off(self, endpoints: Iterable[Endpoint]) -> None:
        """Have it lead to these no longer, whose addresses are not others' yet. 30 µs."""
        for some in _pieces(endpoints):
            self._cut_off(some)

    def leave(self, endpoints: Iterable[Endpoint]) -> None:
        """The same, also where the addresses may be others' by now: to them it goes on to lead.

        15 µs each where it led to none of these any more.
        """
        with explaining("the ways of networks"):
            for some in _pieces(endpoints):
                led = self._led_to([_address(one) for one in some])
                self._leave([one for one in some if led.get(_address(one)) == one.index])

    def _cut_off(self, some: Sequence[Endpoint]) -> None:
        try:
            self._send(tables.deletions([_entry(one) for one in some]))
        except NetlinkError as error:
            if error.errno not in _ABSENT:
                raise
            self.leave(some)  # some have a route of their own, or are cut off already

    def _leave(self, some: Sequence[Endpoint]) -> None:
        if not some:
            return
        entries = [_entry(one) for one in some]
        try:
            # A deletion ignores the data. So the same is added first, which fails for others.
            self._send([*tables.additions(entries), *tables.deletions(entries)])
        except NetlinkError as error:
            if error.errno not in (*_TAKEN, errno.ENOENT):
                raise
            if len(some) > 1:
                for one in some:
                    self._leave([one])

    def _enter_anew(self, one: Endpoint) -> None:
        entry = _entry(one)
        address = one.addresses[1]
        assert address is not None
        try:
            return self._send(tables.additions([entry]))
        except NetlinkError as error:
            if error.errno not in _TAKEN:
                raise
        index = self._led_to([entry[0]]).get(entry[0], one.index)
        if index != one.index and attached.present_of([index]):
            raise InterfaceError(
                f"{one.shown}: no way to {address.ip}: it leads to interface {index}"
            )
        self._send([*self._others(entry), *tables.additions([entry])])
        return None

    def _others(self, entry: tuple[bytes, bytes, bytes]) -> list[nf_tables.Step]:
        """The steps that delete whatever there is of an address."""
        return [step for step in tables.deletions([entry]) if self._asked([step.body])]

    def _led_to(self, addresses: Sequence[bytes]) -> dict[bytes, int]:
        """To which interfaces it leads, of those of these addresses for which it does."""
        found: dict[bytes, bytes] = {}
        for start in range(0, len(addresses), _ASKED):
            part = addresses[start : start + _ASKED]
            questions = [tables.deletions([(one, b"", b"")])[1].body for one in part]
            found |= nf_tables.listed(self._asked(questions))
        return {address: int(_U32.unpack(index)[0]) for address, index in found.items()}

    def _asked(self, questions: Sequence[bytes]) -> list[bytes]:
        """The answers about elements; there is none about one that there is not."""
        try:
            return self._socket.get().call_each(nf_tables.GET_ELEMENT, questions)
        except NetlinkError as error:
            if error.errno not in _ABSENT:
                raise
            return []

    def _send(self, steps: Sequence[nf_tables.Step]) -> None:
        nf_tables.send(self._socket.get(), steps)


def _by(host: NetlinkSocket, some: Sequence[Endpoint]) -> list[int]:
    """The interfaces by which the host reaches each of them now; 0 for none."""
    found = []
    for start in range(0, len(some), _ASKED):
        asked = [
            (rtnetlink.GET_ROUTE, 0, rtnetlink.route_to(V6.af, _address(one)))
            for one in some[start : start + _ASKED]
        ]
        answers: list[bytes] = []
        outcomes = host.outcomes(asked, answers)
        bodies = iter(answers)
        found += [rtnetlink.outgoing(next(bodies)) if f is None else 0 for f in outcomes]
    return found


def _address(one: Endpoint) -> bytes:
    assert one.addresses[1] is not None
    return one.addresses[1].packed


def _entry(one: Endpoint) -> tuple[bytes, bytes, bytes]:
    return _address(one), one.mac, _U32.pack(one.index)


def _pieces(endpoints: Iterable[Endpoint]) -> Iterable[Sequence[Endpoint]]:
    some = [one for one in endpoints if one.addresses[1] is not None]
    return [some[start : start + _PIECE] for start in range(0, len(some), _PIECE)]

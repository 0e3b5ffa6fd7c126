"""The kernel settings that routed containers need, and taking them back."""

from netalloc.family import NO_NETWORK, V4, NetworkPair
from netalloc.host import forwarding, gateway_addresses
from netalloc.host.opened import Entry, opened
from netalloc.portmap.link import Link


class RoutedSettings:
    """ip_forward, and the gateways' addresses on `lo`.

    `user` names the one who needs them among all of netalloc in the network namespace, as with
    netalloc.portmap.bridge_settings. What is changed on the host, until the last user leaves:

    - It forwards, in the families of the networks (netalloc.host.forwarding).
    - `lo` has the gateways' addresses (netalloc.host.gateway_addresses), where no interface has.

    What is of one container's interface (rp_filter, route_localnet, routes, neighbours) is set
    when that is made (netalloc.host.attaching). The host does not reach containers from ::1: that
    takes a route on each interface, and each costs all of them (0.24 ms with 10,000).
    """

    def __init__(self, link: Link, user: str, networks: NetworkPair = NO_NETWORK) -> None:
        self.loopback6 = False  # whether the host reaches containers from ::1
        self._families = networks.families or (V4,)
        self._gateways = [one for one in link.gateways if one is not None]
        self._user = user
        self._is_known = False

    def check(self) -> None:
        """There is nothing that has to be there."""

    def restore(self) -> tuple[str, ...]:
        """Switch on what is off, and say what was. 0.1 ms when nothing was.

        Raises InterfaceError where `lo` is down, CommandError and NetallocError without the
        privilege.
        """
        if (
            self._is_known
            and all(map(forwarding.is_on, self._families))
            and gateway_addresses.are_there(self._gateways)
        ):
            return ()
        with opened() as record:
            found = self._restore(record)
        self._is_known = True
        return found

    def _restore(self, record: set[Entry]) -> tuple[str, ...]:
        found = gateway_addresses.add(record, self._user, self._gateways)
        for family in self._families:
            found += forwarding.switch_on(record, self._user, family)
        return found

    def watched(self) -> int | None:
        """No interface has to be seen to by us."""
        return None

    def withdraw(self) -> None:
        """Switch off what only we have needed and what was off before."""
        with opened() as record:
            gateway_addresses.withdraw(record, self._user)
            for family in self._families:
                forwarding.switch_off(record, self._user, family)
        self._is_known = False

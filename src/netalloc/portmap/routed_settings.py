"""The kernel settings that routed containers need, and taking them back."""

from netalloc.family import FAMILIES, NO_NETWORK, V4, NetworkPair
from netalloc.host import (
    closed_networks,
    forwarding,
    gateway_addresses,
    loopback_way,
    network_way,
)
from netalloc.host.network_way import Way
from netalloc.host.opened import opened
from netalloc.host.rule_monitor import Watched
from netalloc.host.way_tables import TABLE
from netalloc.portmap.bridge_settings import close_bridges
from netalloc.portmap.link import Link


class RoutedSettings:
    """ip_forward, the gateways' addresses on `lo`, and an end of the networks.

    `user` names the one who needs them among all of netalloc in the network namespace, as with
    netalloc.portmap.bridge_settings. What is changed on the host, until the last user leaves:

    - It forwards, in the families of the networks (netalloc.host.forwarding).
    - `lo` has the gateways' addresses (netalloc.host.gateway_addresses), where no interface has.
    - What is for an address of the networks that no container has is refused, and does not leave
      the host (netalloc.host.closed_networks).
    - All IPv6 containers are behind one route by a device (netalloc.host.network_way), where the
      kernel has what that takes, and so are the answers to what the host asks from ::1
      (netalloc.host.loopback_way); without it `loopback6` is false.

    What is of one container's interface (rp_filter, route_localnet, routes, neighbours) is set
    when that is made (netalloc.host.attaching).
    """

    def __init__(self, link: Link, user: str, networks: NetworkPair = NO_NETWORK) -> None:
        self.loopback6 = False  # whether the host reaches containers from ::1
        self._families = networks.families or (V4,)
        self._gateways = [one for one in link.gateways if one is not None]
        self._networks = [one for one in networks if one is not None]
        self._six = link.gateways[1], networks.v6
        self._has_v6 = networks.v6 is not None
        self._way: Way | None = None
        if networks.v6 is not None:
            self._way = Way.of(link.group, networks.v6, link.gateways[1])
        self._user = user
        self._is_known = False

    def check(self) -> None:
        """There is nothing that has to be there."""

    def restore(self) -> tuple[str, ...]:
        """Switch on what is off, and say what was. 0.1 ms when nothing was.

        Raises CommandError and NetallocError without the privilege.
        """
        if (
            self._is_known
            and all(map(forwarding.is_on, self._families))
            and gateway_addresses.are_there(self._gateways)
            and (self._way is None or network_way.is_whole(self._way))
            and (not self.loopback6 or loopback_way.is_whole())
        ):
            found = () if self._way is None else network_way.put_route(self._way)
            return found + closed_networks.close(self._networks)
        found = ()
        # Each is known as ours before the next one is touched, whatever is killed in between.
        for family in self._families:
            with opened() as record:
                found += forwarding.switch_on(record, self._user, family)
        with opened() as record:
            close_bridges(record, self._user)  # on which the network was before it was made anew
            missing = gateway_addresses.note(record, self._user, self._gateways)
            closed_networks.note(record, self._user, self._networks)
            if self._way is not None:
                network_way.note(record, self._user, self._way)
            if self._has_v6:
                loopback_way.note(record, self._user)
        if missing:
            found += gateway_addresses.put(missing)
            gateway, network = self._six
            if gateway in missing and network is not None:
                gateway_addresses.mend_sources(gateway, network)
        found += self._mend_way(anew=self._six[0] in missing) + self._mend_answers()
        self._is_known = True
        return found + closed_networks.close(self._networks)

    def _mend_way(self, *, anew: bool) -> tuple[str, ...]:
        """By one at a time: with the record's lock."""
        if self._way is None:
            return ()
        with opened():
            found = network_way.mend(self._way, anew=anew)
        if found is None:
            self._way = None
        return found or ()

    def _mend_answers(self) -> tuple[str, ...]:
        if not self._has_v6:
            return ()
        with opened():
            found = loopback_way.mend()
        self.loopback6 = found is not None
        return found or ()

    def watched(self) -> Watched:
        """The gateways, for with one of IPv4 go all routes that name it as their source.

        And the way, whose device has an address for that.
        """
        if self._way is None:
            return Watched(addresses=tuple(self._gateways))
        addresses = *self._gateways, self._way.address
        return Watched(addresses=addresses, structure=TABLE)

    def withdraw(self) -> None:
        """Switch off what only we have needed and what was off before."""
        with opened() as record:
            close_bridges(record, self._user)
            closed_networks.withdraw(record, self._user)
            loopback_way.withdraw(record, self._user)
            network_way.withdraw(record, self._user)
            gateway_addresses.withdraw(record, self._user)
            for family in FAMILIES:
                forwarding.switch_off(record, self._user, family)
        self._is_known = False

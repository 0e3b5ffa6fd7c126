"""The settings that a link needs on the host."""

from typing import TypeAlias

from netalloc.family import NO_NETWORK, NetworkPair
from netalloc.portmap.bridge_settings import BridgeSettings
from netalloc.portmap.link import Link
from netalloc.portmap.routed_settings import RoutedSettings

LinkSettings: TypeAlias = BridgeSettings | RoutedSettings


def settings_of(link: Link, user: str, networks: NetworkPair = NO_NETWORK) -> LinkSettings:
    """Those of a bridge, or of routed interfaces; `user` names the one who needs them."""
    if link.is_routed:
        return RoutedSettings(link, user, networks)
    return BridgeSettings(link.bridge, user, networks)

"""The tables of earlier versions, one `ip NAME` for each network: both would translate."""

import errno
import logging

from netalloc.family import V4
from netalloc.host.netlink import NetlinkError
from netalloc.model import PortMapping
from netalloc.portmap.bridge_settings import BridgeSettings
from netalloc.portmap.nftables import batch, elements, maps, ruleset
from netalloc.portmap.nftables.elements import IPV4
from netalloc.portmap.nftables.ownership import Ownership
from netalloc.portmap.nftables.table import NftTable

logger = logging.getLogger(__name__)


class Earlier:
    """The table that an earlier version had for a network, and its user of the bridge."""

    def __init__(self, table: NftTable, name: str, bridge: str | None, settings: str) -> None:
        self._table = table
        self._name = name
        self._settings = None
        if settings != f"nftables {name}":
            self._settings = BridgeSettings(bridge, f"nftables {name}")

    def take_over(self, own: Ownership) -> None:
        """Move what leads into our network to the new table, in one transaction if that fits."""
        if not self.is_there():
            return
        old = NftTable(self._name, IPV4)
        found: list[PortMapping] = []
        try:
            for name, entries in old.list([V4]).items():
                elements.decode_all(entries, maps.MAP_TYPES[name], found)
        finally:
            old.close()
        held = elements.entries([m for m in found if own.has(m)])
        for name, present in self._table.list([V4]).items():
            size = maps.MAP_TYPES[name].key_size
            taken = {entry[:size] for entry in present}
            kept = {e: m for e, m in held.get(name, {}).items() if e[:size] not in taken}
            held[name] = kept
        steps = batch.additions(self._table.name, held)
        steps.append(ruleset.table_deletion(self._name, IPV4))
        netlink = self._table.netlink
        if netlink.can_send(batch.size(steps)):
            batch.send(netlink, steps)
        else:
            for step in steps:
                batch.send(netlink, [step])
        self._withdraw(len(found))

    def remove(self) -> None:
        """Take it away."""
        if not self.is_there():
            return
        try:
            batch.send(self._table.netlink, [ruleset.table_deletion(self._name, IPV4)])
        except NetlinkError as error:
            if error.errno != errno.ENOENT:
                raise
        self._withdraw(0)

    def is_there(self) -> bool:
        """Whether there is such a table."""
        return ruleset.is_ours(self._table.netlink, self._name, IPV4)

    def _withdraw(self, count: int) -> None:
        logger.info("table ip %s of an earlier version: took %d mappings over", self._name, count)
        if self._settings is not None:
            self._settings.withdraw()

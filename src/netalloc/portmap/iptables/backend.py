"""The iptables backend: works wherever there is an `iptables`, legacy or nft.

The kernel is changed by iptables-restore and ip6tables-restore alone, one transaction per
table, and every change is an addition or deletion of single rules: several processes may keep
mappings in the same chains. What this one believes to be there only decides which chains to
make or drop; when the command finds it wrong, nothing has happened, and the chains are read
again. Each family has its own command: one that the networks do not have is not touched.
"""

import logging
import socket
import sys
from collections.abc import Collection, Sequence
from contextlib import suppress
from threading import RLock

from netalloc.errors import InUseError, InvalidValueError, NetallocError
from netalloc.family import NO_NETWORK, V4, NetworkPair
from netalloc.host.bridge_ports import needs_hairpin
from netalloc.host.netlink import explaining
from netalloc.host.netns import HomeNamespace
from netalloc.host.rule_monitor import RuleMonitor
from netalloc.locks import locked
from netalloc.model import PortMapping, ReconcileResult
from netalloc.portmap.backend import NetworkGuard
from netalloc.portmap.desired import describe
from netalloc.portmap.iptables import commands, rules
from netalloc.portmap.iptables.chains import Batch, Chains
from netalloc.portmap.iptables.commands import has_table, iptables, variant
from netalloc.portmap.iptables.difference import repairs
from netalloc.portmap.link import NO_LINK, Link
from netalloc.portmap.link_settings import settings_of

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

__all__ = ["Iptables", "iptables", "variant"]

logger = logging.getLogger(__name__)

_DOCKER_SOCKETS = ("/run/docker.sock", "/var/run/docker.sock")

_Part = tuple[Chains, Sequence[PortMapping], Sequence[PortMapping]]


class Iptables:
    """Mappings as DNAT rules in chains called after `name`, of the networks' families.

    With a link and its networks the containers there also reach the outside, each other
    through the host's ports, and the host reaches them from 127.0.0.1; without a link there is
    no way from 127.0.0.1. Without any network the mappings are of IPv4. Safe for threads, and
    for several processes as long as no two of them add the same port at the same time.
    """

    name = "iptables"

    def __init__(
        self,
        name: str = "netalloc",
        *,
        link: Link = NO_LINK,
        networks: NetworkPair = NO_NETWORK,
        guard: NetworkGuard | None = None,
    ) -> None:
        self.chain = rules.check_name(name)
        self.guard = guard
        link = link.checked()
        self.bridge = link.bridge
        self.networks = networks
        self._settings = settings_of(link, f"iptables {name}", networks)
        self._home = HomeNamespace()
        self._chains = [
            Chains(family, name, link, networks.v4 if family is V4 else networks.v6)
            for family in networks.families or (V4,)
        ]
        self._lock = RLock()

    @locked
    def setup(self) -> None:
        """Make the fixed part; a predecessor's mappings stay and keep working.

        Raises InterfaceError when there is no such bridge, InUseError when the chains are
        another program's, CommandError when iptables fails: before anything has changed.
        """
        self._home.check()
        self._settings.check()
        for chains in self._chains:
            commands.require(chains.family)
        new = []
        for chains in self._chains:
            nat = chains.nat()
            self._refuse_taken(chains, nat)
            if self.chain not in nat:
                new.append(chains)
        for chains in self._chains:
            other, present = commands.other_variant(chains.family)
            if self.chain in present:
                logger.warning(
                    "%s-%s has a chain %s, too: what it maps stays in effect",
                    chains.family.iptables, other, self.chain,
                )  # fmt: skip
        try:
            self._mend([(chains, None) for chains in self._chains])
        except BaseException:
            self._undo_setup(new)
            raise

    @locked
    def cleanup(self) -> None:
        """Remove our chains and the rules that lead to them; what is missing is no error."""
        self._home.check()
        self._remove(self._chains, settings=True)
        if self.guard is not None:
            self.guard.cleanup()

    def _remove(self, which: Sequence[Chains], *, settings: bool) -> None:
        states = []
        for chains in which:
            state = chains.read(bridged=False)
            self._refuse_taken(chains, state["nat"])
            if "mangle" in chains.tables(bridged=True) and has_table("mangle", chains.family):
                state |= commands.read("mangle", family=chains.family)
            states.append(state)
        if settings:
            self._settings.withdraw()
        for chains, state in zip(which, states, strict=True):
            chains.remove(state)

    def _undo_setup(self, new: Sequence[Chains]) -> None:
        try:
            self._remove(new, settings=len(new) == len(self._chains))
        except NetallocError as error:
            logger.warning("what a failed set-up made stays, in part: %s", error)

    @locked
    def apply(self, add: Sequence[PortMapping], remove: Sequence[PortMapping] = ()) -> None:
        """Remove, then add, all of it or nothing: in one iptables-restore for each family.

        Raises InUseError where a key to add is present, NotAllocatedError where a mapping
        to remove is not there as given. Linear in the batch; legacy iptables itself reads
        and writes the whole table for any change. When the second family fails, the first one's
        change is taken back; should that fail as well, both are raised as an ExceptionGroup.
        A process that dies between the two leaves the first, until it is reconciled.
        """
        if not add and not remove:
            return
        self._home.check()
        parts = [Batch(*part) for part in self._parts(add, remove) if part[1] or part[2]]
        if len(parts) == 1:
            parts[0].make()
            return
        for part in parts:
            part.prepare()
        try:
            for part in parts:
                part.make()
        except BaseException as error:
            self._take_back(parts, error)
            raise

    @staticmethod
    def _take_back(parts: Sequence[Batch], error: BaseException) -> None:
        try:
            for part in parts:
                part.take_back()
        except NetallocError as failure:
            if isinstance(error, Exception):
                raise ExceptionGroup(
                    "mappings of one family were changed, and undoing it failed", [error, failure]
                ) from None
            logger.error("undoing what %r had cut off failed: %s", error, failure)  # noqa: TRY400

    @locked
    def mappings(self) -> list[PortMapping]:
        """What the kernel has now; rules in our chains that map nothing are left out."""
        self._home.check()
        found: list[PortMapping] = []
        for chains in self._chains:
            chains.known = chains.listed()
            found += chains.known.present.values()
        return found

    @locked
    def reconcile(self, desired: Collection[PortMapping]) -> ReconcileResult:
        """Bring chains and settings to what they should be, touching only what differs.

        With nothing to do it takes about twice as long as iptables-save, for each family: 5 ms,
        and 0.1 to 0.3 s with 16,000 mappings.
        """
        self._home.check()
        return self._mend([(chains, wanted) for chains, wanted, _ in self._parts(desired)])

    def agrees(self, desired: Collection[PortMapping]) -> bool:
        """Whether the chains are as reconcile() would make them."""
        with self._lock:
            self._home.check()
            bridged, loopback = self._bridged(), self._settings.loopback6
            return all(
                chains.agree(wanted, bridged=bridged, loopback=loopback)
                for chains, wanted, _ in self._parts(desired)
            )

    def monitor(self) -> RuleMonitor:
        """Tells when anybody changes the tables that our chains are in, ourselves included.

        Raises NetallocError with iptables-legacy: its changes show in the audit log of
        the first network namespace at best, and the kernel tells no one else.
        """
        self._home.check()
        if any(variant(chains.family) == "legacy" for chains in self._chains):
            raise NetallocError(
                "the kernel does not tell when iptables-legacy changes rules: watch works "
                "with nftables and iptables-nft; elsewhere call reconcile from time to time"
            )
        with explaining("watching tables of iptables"):
            tables = ("nat", "mangle", "raw", "filter")
            families = tuple([chains.family.af for chains in self._chains])
            watched, guard = self._settings.watched(), self.guard
            if guard is None or not guard.is_guarded:
                return RuleMonitor(tables, watched=watched, families=families)
            return RuleMonitor(
                tables + guard.watched_tables,
                own=[guard.portid],
                watched=watched,
                maps=guard.watched_sets,
                families=families + guard.watched_families,
            )

    def close(self) -> None:
        """Give back the guard's socket; the rules stay."""
        if self.guard is not None:
            self.guard.close()

    def _bridged(self) -> bool:
        return self.bridge is not None and needs_hairpin(self.bridge)

    def _refuse_taken(self, chains: Chains, nat: rules.Rules) -> None:
        """InUseError when the chains that are there under our name are another program's."""
        if self.chain == "DOCKER" and _docker_runs():
            raise InUseError("chain DOCKER is taken: a Docker daemon runs", "DOCKER")
        chains.refuse_taken(nat)

    def _parts(
        self, add: Collection[PortMapping], remove: Sequence[PortMapping] = ()
    ) -> list[_Part]:
        """What of it is of each family; InvalidValueError for a family that is not there."""
        if len(self._chains) > 1:
            return [
                (
                    chains,
                    [mapping for mapping in add if mapping.version == chains.family.version],
                    [mapping for mapping in remove if mapping.version == chains.family.version],
                )
                for chains in self._chains
            ]
        (chains,) = self._chains
        version = chains.family.version
        for mapping in (*add, *remove):
            if mapping.version != version:
                having = f", as its network is {self.networks}" if any(self.networks) else ""
                raise InvalidValueError(
                    f"{describe(mapping)} is of IPv{mapping.version}: chain {self.chain} is for "
                    f"IPv{version} alone{having}"
                )
        return [(chains, [*add], remove)]

    def _mend(
        self, parts: Sequence[tuple[Chains, Collection[PortMapping] | None]]
    ) -> ReconcileResult:
        """Make settings, then rules, what they should be; None keeps the mappings there are."""
        settings = self._settings.restore()
        if self.guard is not None:
            settings += self.guard.setup()
        bridged, loopback = self._bridged(), self._settings.loopback6
        differences = [
            chains.mend(desired, bridged=bridged, loopback=loopback) for chains, desired in parts
        ]
        return repairs(differences, settings)


def _docker_runs() -> bool:
    for path in _DOCKER_SOCKETS:
        with socket.socket(socket.AF_UNIX) as client, suppress(OSError):
            client.connect(path)
            return True
    return False

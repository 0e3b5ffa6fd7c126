"""The iptables backend: works wherever there is an `iptables`, legacy or nft.

The kernel is changed by iptables-restore alone, one transaction per table, and every change
is an addition or deletion of single rules: several processes may keep mappings in the same
chains. What this one believes to be there only decides which chains to make or drop; when
iptables-restore finds it wrong, nothing has happened, and the chains are read again.
"""

import logging
import socket
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from threading import RLock

from netalloc.errors import (
    CommandError,
    InUseError,
    NetallocError,
)
from netalloc.family import NO_NETWORK, NetworkPair
from netalloc.host.bridge_ports import needs_hairpin
from netalloc.host.links import check_name
from netalloc.host.netlink import explaining
from netalloc.host.netns import HomeNamespace
from netalloc.host.rule_monitor import RuleMonitor
from netalloc.locks import locked
from netalloc.model import PortMapping, ReconcileResult
from netalloc.portmap.bridge_settings import BridgeSettings
from netalloc.portmap.iptables import commands, rules
from netalloc.portmap.iptables.commands import has_table, iptables, variant
from netalloc.portmap.iptables.difference import RuleDiff, removal
from netalloc.portmap.iptables.rules import Rules
from netalloc.portmap.iptables.state import ChainState

__all__ = ["Iptables", "iptables", "variant"]

logger = logging.getLogger(__name__)

_ATTEMPTS = 20  # at chains that others change at the same time
_UNCHANGED = 3  # attempts that fail although nothing seems to have changed
_DOCKER_SOCKETS = ("/run/docker.sock", "/var/run/docker.sock")


class Iptables:
    """Mappings as DNAT rules in chains called after `name`.

    With a bridge and its network the containers behind it also reach the outside, each
    other through the host's ports, and the host reaches them from 127.0.0.1; with
    bridge=None there is no way from 127.0.0.1. Safe for threads, and for several processes
    as long as no two of them add the same port at the same time.
    """

    name = "iptables"

    def __init__(
        self,
        name: str = "netalloc",
        *,
        bridge: str | None = None,
        networks: NetworkPair = NO_NETWORK,
    ) -> None:
        self.chain = rules.check_name(name)
        self.bridge = None if bridge is None else check_name(bridge, "bridge")
        self.networks = networks
        self._settings = BridgeSettings(self.bridge, f"iptables {name}")
        self._home = HomeNamespace()
        self._known: ChainState | None = None
        self._lock = RLock()

    @locked
    def setup(self) -> None:
        """Make the fixed part; a predecessor's mappings stay and keep working.

        Raises InterfaceError when there is no such bridge, InUseError when the chains are
        another program's, CommandError when iptables fails: before anything has changed.
        """
        self._home.check()
        self._settings.check()
        nat = commands.read("nat")["nat"]
        self._refuse_taken(nat)
        other, present = commands.other_variant()
        if self.chain in present:
            logger.warning(
                "iptables-%s has a chain %s, too: what it maps stays in effect",
                other,
                self.chain,
            )
        try:
            self._mend(None)
        except BaseException:
            if self.chain not in nat:
                self._undo_setup()
            raise

    @locked
    def cleanup(self) -> None:
        """Remove our chains and the rules that lead to them; what is missing is no error."""
        self._home.check()
        state = self._read(bridged=False)
        self._refuse_taken(state["nat"])
        if bridged := self.bridge is not None and has_table("mangle"):
            state |= commands.read("mangle")
        self._settings.withdraw()
        # nat first: as long as there are mappings, there is the guard.
        ours = self._wanted((), bridged=bridged)
        for table in ("nat", "mangle", "raw"):
            if table in state and (lines := removal(state[table], ours[table], self.chain)):
                commands.restore({table: lines})
        self._known = None

    def _undo_setup(self) -> None:
        try:
            self.cleanup()
        except NetallocError as error:
            logger.warning("what a failed set-up made stays, in part: %s", error)

    @locked
    def apply(self, add: Sequence[PortMapping], remove: Sequence[PortMapping] = ()) -> None:
        """Remove, then add, in one iptables-restore.

        Raises InUseError where a key to add is present, NotAllocatedError where a mapping
        to remove is not there as given. Linear in the batch; legacy iptables itself reads
        and writes the whole table for any change.
        """
        if not add and not remove:
            return
        self._home.check()
        # In the middle of a change, an interrupt leaves it unknown what is there.
        known, self._known = self._known or self._list(), None
        retry = RetryPolicy()
        while True:
            try:
                change = known.change(add, remove, self.chain)
                commands.restore({"nat": change.lines()})
                break
            except NetallocError as error:
                # What was believed may be out of date; if it is not, that is the answer.
                now = self._list()
                if retry.ends(error, changed=now != known):
                    raise
                known = now
        change.done()
        self._known = known

    @locked
    def mappings(self) -> list[PortMapping]:
        """What the kernel has now; rules in our chains that map nothing are left out."""
        self._home.check()
        self._known = self._list()
        return list(self._known.present.values())

    @locked
    def reconcile(self, desired: Collection[PortMapping]) -> ReconcileResult:
        """Bring chains and settings to what they should be, touching only what differs.

        With nothing to do it takes about twice as long as iptables-save: 5 ms, and 0.1 to
        0.3 s with 16,000 mappings.
        """
        self._home.check()
        return self._mend(desired)

    def agrees(self, desired: Collection[PortMapping]) -> bool:
        """Whether the chains are as reconcile() would make them."""
        with self._lock:
            self._home.check()
            bridged = self.bridge is not None and needs_hairpin(self.bridge)
            state = self._read(bridged=bridged)
            wanted = self._wanted(desired, bridged=bridged)
            difference = RuleDiff(self.chain)
            return not any(difference.lines(t, state[t], wanted[t]) for t in wanted)

    def monitor(self) -> RuleMonitor:
        """Tells when anybody changes the tables that our chains are in, ourselves included.

        Raises NetallocError with iptables-legacy: its changes show in the audit log of
        the first network namespace at best, and the kernel tells no one else.
        """
        self._home.check()
        if variant() == "legacy":
            raise NetallocError(
                "the kernel does not tell when iptables-legacy changes rules: watch works "
                "with nftables and iptables-nft; elsewhere call reconcile from time to time"
            )
        with explaining("watching tables of iptables"):
            tables = ("nat", "mangle", "raw", "filter")
            return RuleMonitor(tables, ports_of=self._settings.watched())

    def close(self) -> None:
        """Nothing is held; the rules stay."""

    def _read(self, *, bridged: bool) -> dict[str, Rules]:
        # Without a bridge nothing of ours is in table raw, and a look would make it.
        if self.bridge is None:
            return commands.read("nat")
        return commands.read("raw", *(["mangle"] if bridged else []), "nat")

    def _list(self) -> ChainState:
        return ChainState.read(commands.read("nat")["nat"], self.chain)

    def _wanted(self, desired: Iterable[PortMapping], *, bridged: bool) -> dict[str, Rules]:
        wanted = rules.fixed_rules(self.chain, self.bridge, self.networks.v4, bridged=bridged)
        rules.add_mappings(wanted["nat"], desired, self.chain)
        return wanted

    def _refuse_taken(self, nat: Rules) -> None:
        """InUseError when the chains that are there under our name are another program's."""
        if self.chain == "DOCKER" and _docker_runs():
            raise InUseError("chain DOCKER is taken: a Docker daemon runs", "DOCKER")
        if f"{self.chain}/nat" in nat:
            return  # made together with the main one, in one transaction
        for chain in nat:
            if rules.is_ours(chain, self.chain):
                for rule in nat[chain]:
                    if rules.parse(rule) is None and not rules.is_jump(rule, self.chain):
                        what = f"chain {chain} of table nat is another program's"
                        raise InUseError(f"{what}: it has {rule!r}", chain)

    def _mend(self, desired: Collection[PortMapping] | None) -> ReconcileResult:
        """Make settings, then rules, what they should be; None keeps the mappings there are."""
        settings = self._settings.restore()
        bridged = self.bridge is not None and needs_hairpin(self.bridge)
        state = self._read(bridged=bridged)
        retry = RetryPolicy()
        while True:
            keep: Collection[PortMapping] = (
                ChainState.read(state["nat"], self.chain).present.values()
                if desired is None
                else desired
            )
            wanted = self._wanted(keep, bridged=bridged)
            difference = RuleDiff(self.chain)
            lines = {t: difference.lines(t, state[t], wanted[t]) for t in wanted}
            try:
                if any(lines.values()):
                    self._known = None
                    commands.restore(lines)
                break
            except CommandError as error:
                before, state = state, self._read(bridged=bridged)
                if retry.ends(error, changed=state != before):
                    raise
        self._known = ChainState.of(wanted["nat"], keep, self.chain)
        return difference.repairs(settings)


class RetryPolicy:
    """Says when a change that fails again and again has failed for good."""

    def __init__(self) -> None:
        self._attempts = self._unchanged = 0

    def ends(self, error: NetallocError, *, changed: bool) -> bool:
        """After an attempt; `changed` says whether the chains look different from before it.

        A refusal of ours that was based on them as they are is final. One by the command
        need not be: another process may have made a chain and dropped it again before we
        looked. A held lock has been waited for.
        """
        self._attempts += 1
        self._unchanged += not changed
        if not isinstance(error, CommandError):
            return not changed or self._attempts == _ATTEMPTS
        locked = "xtables lock" in error.stderr
        return locked or self._unchanged == _UNCHANGED or self._attempts == _ATTEMPTS


def _docker_runs() -> bool:
    for path in _DOCKER_SOCKETS:
        with socket.socket(socket.AF_UNIX) as client, suppress(OSError):
            client.connect(path)
            return True
    return False

"""The chains of one family: reading, changing and mending them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from netalloc.errors import CommandError, InUseError, NetallocError
from netalloc.family import Family
from netalloc.model import PortMapping
from netalloc.portmap.iptables import commands, rules
from netalloc.portmap.iptables.difference import RuleDiff, removal
from netalloc.portmap.iptables.rules import IPNetwork, Rules
from netalloc.portmap.iptables.state import ChainChange, ChainState
from netalloc.portmap.link import Link

_ATTEMPTS = 20  # at chains that others change at the same time
_UNCHANGED = 3  # attempts that fail although nothing seems to have changed


class Chains:
    """What iptables, or ip6tables, has under a name; every change is one transaction a table.

    `known` is what the chains held last: it only decides which of them to make or drop.
    """

    def __init__(self, family: Family, name: str, link: Link, network: IPNetwork | None) -> None:
        self.family = family
        self.name = name
        self.link = link
        self.network = network
        self.known: ChainState | None = None
        self._jumps = rules.jumps(name, family)

    def nat(self) -> Rules:
        """All of table nat."""
        return commands.read("nat", family=self.family)["nat"]

    def listed(self) -> ChainState:
        """What the kernel has now."""
        return ChainState.read(self.nat(), self.name, self.family)

    def refuse_taken(self, nat: Rules) -> None:
        """InUseError when the chains that are there under our name are another program's."""
        if f"{self.name}/nat" in nat:
            return  # made together with the main one, in one transaction
        for chain in nat:
            if rules.is_ours(chain, self.name):
                for rule in nat[chain]:
                    mapping = rules.parse(rule, self.family)
                    if mapping is None and not rules.is_jump(rule, self.name):
                        what = f"chain {chain} of table nat is another program's"
                        raise InUseError(f"{what}: it has {rule!r}", chain)

    def tables(self, *, bridged: bool) -> list[str]:
        """The tables that ours are in, where iptables sees bridged frames or not; nat is last."""
        # Elsewhere nothing of ours is in them, and a look would make them.
        return [*rules.fixed_rules(self.name, self.link, None, self.family, bridged=bridged)]

    def read(self, *, bridged: bool) -> dict[str, Rules]:
        """All of the tables that ours are in."""
        return commands.read(*self.tables(bridged=bridged), family=self.family)

    def remove(self, state: dict[str, Rules]) -> None:
        """Remove our chains and what leads to them from these tables."""
        # nat first: as long as there are mappings, there is the guard.
        for table in ("nat", "mangle", "raw"):
            if table in state and (lines := removal(state[table], self._jumps[table], self.name)):
                commands.restore({table: lines}, family=self.family)
        self.known = None

    def agree(self, desired: Iterable[PortMapping], *, bridged: bool, loopback: bool) -> bool:
        """Whether all is as it should be."""
        state = self.read(bridged=bridged)
        wanted = self._wanted(desired, bridged=bridged, loopback=loopback)
        return not any(self._lines(RuleDiff(self.name, self.family), state, wanted).values())

    def mend(
        self, desired: Collection[PortMapping] | None, *, bridged: bool, loopback: bool
    ) -> RuleDiff:
        """Make the rules what they should be; None keeps the mappings there are."""
        state = self.read(bridged=bridged)
        retry = RetryPolicy()
        while True:
            keep: Collection[PortMapping] = (
                ChainState.read(state["nat"], self.name, self.family).present.values()
                if desired is None
                else desired
            )
            wanted = self._wanted(keep, bridged=bridged, loopback=loopback)
            difference = RuleDiff(self.name, self.family)
            lines = self._lines(difference, state, wanted)
            try:
                if any(lines.values()):
                    self.known = None
                    commands.restore(lines, family=self.family)
                break
            except CommandError as error:
                before, state = state, self.read(bridged=bridged)
                if retry.ends(error, changed=state != before):
                    raise
        self.known = ChainState.of(wanted["nat"], keep, self.name)
        return difference

    def _wanted(
        self, desired: Iterable[PortMapping], *, bridged: bool, loopback: bool
    ) -> dict[str, Rules]:
        wanted = rules.fixed_rules(
            self.name, self.link, self.network, self.family, bridged=bridged, loopback=loopback
        )
        rules.add_mappings(wanted["nat"], desired, self.name)
        return wanted

    def _lines(
        self, difference: RuleDiff, state: dict[str, Rules], wanted: dict[str, Rules]
    ) -> dict[str, list[str]]:
        return {
            table: difference.lines(table, state[table], wanted[table], self._jumps[table])
            for table in wanted
        }


class Batch:
    """A change of one family's mappings: one iptables-restore.

    Raises InUseError where a key to add is present, NotAllocatedError where a mapping to
    remove is not there as given. Linear in the batch; legacy iptables itself reads and writes
    the whole table for any change.
    """

    def __init__(
        self, chains: Chains, add: Sequence[PortMapping], remove: Sequence[PortMapping]
    ) -> None:
        self._chains = chains
        self._add = add
        self._remove = remove
        # In the middle of a change, an interrupt leaves it unknown what is there.
        self._known, chains.known = chains.known or chains.listed(), None
        self._retry = RetryPolicy()
        self._change: ChainChange | None = None
        self._made: bool | None = False  # None: it is being made

    def prepare(self) -> None:
        """See whether it can be made, as far as our own rules say so."""
        self._repeat(make=False)

    def make(self) -> None:
        """Make it, all of it or nothing."""
        self._made = None
        try:
            change = self._repeat(make=True)
        except Exception:
            self._made = False
            raise
        self._made = True
        change.done()
        self._chains.known = self._known

    def take_back(self) -> None:
        """Make the inverse, if it was made; where an interrupt leaves that open, look."""
        if self._made is None:
            there = set(self._chains.listed().present.values())
            self._made = self._add[0] in there if self._add else self._remove[0] not in there
        if self._made:
            Batch(self._chains, self._remove, self._add).make()

    def _repeat(self, *, make: bool) -> ChainChange:
        chains = self._chains
        while True:
            try:
                change = self._change or self._known.change(self._add, self._remove, chains.name)
                if make:
                    commands.restore({"nat": change.lines()}, family=chains.family)
                break
            except NetallocError as error:
                # What was believed may be out of date; if it is not, that is the answer.
                now = chains.listed()
                if self._retry.ends(error, changed=now != self._known):
                    raise
                self._known, self._change = now, None
        self._change = change
        return change


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

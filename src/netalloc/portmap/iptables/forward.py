"""ACCEPTs for the containers where FORWARD drops by default.

A packet must pass every chain at a hook, so nothing that one of our own tables accepts
helps against a DROP in FORWARD: the ACCEPTs have to stand in that chain itself, whichever
backend makes the mappings. Where Docker runs they go into DOCKER-USER, which Docker calls
first and keeps when it rebuilds its own chains.
"""

from collections.abc import Sequence
from threading import RLock

from netalloc.errors import CommandError
from netalloc.family import V4, Family
from netalloc.host.netns import HomeNamespace
from netalloc.locks import locked
from netalloc.portmap.iptables import commands, rules
from netalloc.portmap.iptables.difference import RuleDiff, removal
from netalloc.portmap.iptables.rules import Rules
from netalloc.portmap.link import Link


class ForwardAccept:
    """Accepts what the containers of a link send, what answers them, and what is mapped.

    A jump at the head of FORWARD or DOCKER-USER leads to a chain of our own, in each of the
    families. Raises OutOfRangeError and InUseError for a name that no chain of ours can have.
    """

    def __init__(self, name: str, link: Link, families: Sequence[Family] = (V4,)) -> None:
        self.name = rules.check_name(name)
        self.chain = f"{name}/fwd"
        link = link.checked()
        self._from, self._to = f"-i {link.bridge}", f"-o {link.bridge}"
        if link.is_routed:
            self._from, self._to = (
                f"-m devgroup --{end}-group {link.group:#x}" for end in ("src", "dst")
            )
        self.families = families
        self._home = HomeNamespace()
        self._lock = RLock()

    @locked
    def reconcile(self) -> tuple[str, ...]:
        """Add what is missing, remove what is too much, and say what it was.

        When Docker came after us, the jump moves to its chain. Raises CommandError when
        iptables fails; when a family has none, before anything has changed.
        """
        self._home.check()
        for family in self.families:
            commands.require(family)
        return tuple([what for family in self.families for what in self._mend(family)])

    def _mend(self, family: Family) -> list[str]:
        for attempt in (1, 2, 3):
            have = commands.read("filter", family=family)["filter"]
            difference = RuleDiff(self.name, family)
            lines = difference.lines("filter", have, self._wanted(have), self._jumps(family))
            try:
                if lines:
                    commands.restore({"filter": lines}, family=family)
                break
            except CommandError:
                # Another program changed the table in between, and Docker does so often.
                if attempt == 3 or commands.read("filter", family=family)["filter"] == have:
                    raise
        return difference.structure

    @locked
    def cleanup(self) -> None:
        """Remove chain and jumps; what is missing already is no error."""
        self._home.check()
        for family in self.families:
            have = commands.read("filter", family=family)["filter"]
            if lines := removal(have, self._jumps(family), self.name):
                commands.restore({"filter": lines}, family=family)

    def _jumps(self, family: Family) -> Rules:
        return rules.jumps(self.name, family)["filter"]

    def _wanted(self, have: Rules) -> Rules:
        head = "DOCKER-USER" if "DOCKER-USER" in have else "FORWARD"
        jump = [f"-j {self.chain}"]
        return {
            # An empty list: a jump there is one too many.
            **{chain: [] for chain in ("FORWARD", "DOCKER-USER") if chain in have},
            head: jump,
            self.chain: [
                f"{self._to} -m conntrack --ctstate DNAT -j ACCEPT",
                f"{self._to} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
                f"{self._from} -j ACCEPT",
            ],
        }

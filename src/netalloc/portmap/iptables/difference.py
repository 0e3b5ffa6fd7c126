"""Where the kernel's rules differ from what they should be, and the lines that mend it."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from netalloc.family import V4, V6, Family
from netalloc.model import PortMapping, ReconcileResult
from netalloc.portmap.iptables import rules
from netalloc.portmap.iptables.rules import Rules


@dataclass
class RuleDiff:
    """Collects what the kernel's rules lack and have too much, table by table."""

    name: str
    family: Family = V4
    added: list[PortMapping] = field(default_factory=list)
    removed: list[PortMapping] = field(default_factory=list)
    structure: list[str] = field(default_factory=list)

    def lines(self, table: str, have: Rules, want: Rules, known: Rules | None = None) -> list[str]:
        """The lines that turn what is there into what should be, touching nothing else.

        In a chain of others only the rules in `known` (default: the wanted ones) are ours.
        """
        known = want if known is None else known
        empty = self._empty(have, want)
        called = f"{self.family.word} {table}" if self.family is V6 else table
        new, delete, add, drop = [], [], [], []
        for chain in want:
            if chain not in have and rules.is_ours(chain, self.name):
                new.append(f"-N {chain}\n")
                self.structure.append(f"chain {chain} of table {called} was missing")
        for chain in {**have, **want}:
            ours = rules.is_ours(chain, self.name)
            if not ours and chain not in want:
                continue
            present, wanted = have.get(chain, []), want.get(chain, [])
            if present != wanted:
                there, right = Counter(present), Counter(wanted)
                # In a built-in chain the other rules are other people's.
                if not ours:
                    there = Counter(rule for rule in present if rule in known[chain])
                surplus = there - right
                for rule in surplus.elements():
                    delete.append(f"-D {chain} {rule}\n")
                    if rule.rpartition(" -j ")[2] not in empty:
                        self._note(
                            rule, self.removed, f"chain {chain} of table {called} had {rule!r}"
                        )
                for rule in (right - there).elements():
                    # What guards or accepts goes before rules that decide otherwise.
                    verb = "-A" if ours or table == "nat" else "-I"
                    add.append(f"{verb} {chain} {rule}\n")
                    self._note(rule, self.added, f"chain {chain} of table {called} lacked {rule!r}")
            if ours and chain not in want:
                drop.append(f"-X {chain}\n")
                if chain not in empty:
                    self.structure.append(f"chain {chain} of table {called} was left over")
        return new + delete + add + drop

    def _empty(self, have: Rules, want: Rules) -> set[str]:
        """Groups and leaves that no packet gets anything from: they go, and are no fault.

        Two processes that take their last mappings out of a leaf at one time leave it.
        """
        empty: set[str] = set()
        for chain in sorted(have, reverse=True):  # small letters, the leaves, come first
            if chain not in want and rules.in_tree(chain, self.name):
                jumps = (rule.rpartition(" -j ")[2] for rule in have[chain])
                if all(target in empty for target in jumps):
                    empty.add(chain)
        return empty

    def _note(self, rule: str, mappings: list[PortMapping], otherwise: str) -> None:
        mapping = rules.parse(rule, self.family)
        if mapping is not None:
            mappings.append(mapping)
        else:
            self.structure.append(otherwise)


def repairs(differences: Sequence[RuleDiff], settings: Iterable[str]) -> ReconcileResult:
    """All that they have found, with the settings that were wrong."""
    return ReconcileResult(
        tuple([mapping for one in differences for mapping in one.added]),
        tuple([mapping for one in differences for mapping in one.removed]),
        (*[line for one in differences for line in one.structure], *settings),
    )


def removal(have: Rules, known: Rules, name: str) -> list[str]:
    """The lines that take all of ours out of a table, as far as it is there."""
    ours = [chain for chain in have if rules.is_ours(chain, name)]
    jumps = [
        f"-D {chain} {rule}\n"
        for chain in known
        if chain not in ours
        for rule in have.get(chain, ())
        if rule in known[chain]
    ]
    return [*jumps, *(f"-F {chain}\n" for chain in ours), *(f"-X {chain}\n" for chain in ours)]

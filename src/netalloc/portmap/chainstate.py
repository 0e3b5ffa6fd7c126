"""What the iptables chains hold, what a change to them takes, and where they differ."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from itertools import pairwise

from netalloc.errors import InUseError, NetallocError, NotAllocatedError
from netalloc.model import Mapping, Repairs
from netalloc.portmap import chains
from netalloc.portmap.chains import Rules

Key = tuple[IPv4Address | None, str, int]


@dataclass
class Known:
    """The mappings that are present, and how many rules each of our chains has."""

    present: dict[Key, Mapping]
    sizes: dict[str, int]

    @classmethod
    def read(cls, nat: Rules, name: str) -> "Known":
        """From all rules of table nat."""
        present: dict[Key, Mapping] = {}
        sizes = {chain: len(nat[chain]) for chain in nat if chains.is_ours(chain, name)}
        for chain in sizes:
            for rule in nat[chain]:
                mapping = chains.parse(rule)
                if mapping is not None and chains.path(mapping, name)[-1] == chain:
                    # The first rule is the one that packets meet.
                    present.setdefault(mapping.key, mapping)
        return cls(present, sizes)

    def check(self, add: Sequence[Mapping], remove: Sequence[Mapping], name: str) -> list[Mapping]:
        """What to remove as it is present; InUseError or NotAllocatedError if it cannot be."""
        if name not in self.sizes:
            raise NetallocError(f"chain {name} is missing: setup() makes it, reconcile() mends it")
        removal: dict[Key, Mapping] = {}
        for mapping in remove:
            present = self.present.get(mapping.key)
            if present != mapping or mapping.key in removal:
                raise NotAllocatedError(f"{mapping} is not mapped; the kernel has {present}")
            removal[mapping.key] = present
        added: dict[Key, Mapping] = {}
        for mapping in add:
            holder = added.get(mapping.key)
            if holder is None and mapping.key not in removal:
                holder = self.present.get(mapping.key)
            if holder is not None:
                raise InUseError(f"{mapping} is mapped: {holder}", holder.owner)
            added[mapping.key] = mapping
        return list(removal.values())

    def plan(
        self, add: Iterable[Mapping], remove: Iterable[Mapping], name: str
    ) -> tuple[list[str], dict[str, int]]:
        """The lines that iptables-restore needs for a change, and the sizes after it."""
        sizes = dict(self.sizes)
        lines: list[str] = []
        touched: set[str] = set()
        for mapping in remove:
            way = chains.path(mapping, name)
            touched.update(way[1:])
            lines.append(f"-D {way[-1]} {chains.rule(mapping)}")
            sizes[way[-1]] -= 1
        for mapping in add:
            way = chains.path(mapping, name)
            for above, chain in pairwise(way):
                if chain not in sizes:
                    # -N fails where another process was quicker; `:CHAIN` would flush it.
                    lines += (f"-N {chain}", f"-A {above} {chains.jump(chain)}")
                    sizes[chain] = 0
                    sizes[above] += 1
            lines.append(f"-A {way[-1]} {chains.rule(mapping)}")
            sizes[way[-1]] += 1
        for chain in sorted(touched, key=len, reverse=True):  # leaves before their groups
            if sizes[chain] == 0:
                above = chains.parent(chain)
                lines += (f"-D {above} {chains.jump(chain)}", f"-X {chain}")
                sizes[above] -= 1
                del sizes[chain]
        return lines, sizes


@dataclass
class Difference:
    """Collects what the kernel's rules lack and have too much, table by table."""

    name: str
    added: list[Mapping] = field(default_factory=list)
    removed: list[Mapping] = field(default_factory=list)
    structure: list[str] = field(default_factory=list)

    def lines(self, table: str, have: Rules, want: Rules) -> list[str]:
        """The lines that turn what is there into what should be, touching nothing else."""
        new, delete, add, drop = [], [], [], []
        for chain in want:
            if chain not in have and chains.is_ours(chain, self.name):
                new.append(f"-N {chain}")
                self.structure.append(f"chain {chain} of table {table} was missing")
        for chain in {**have, **want}:
            ours = chains.is_ours(chain, self.name)
            if not ours and chain not in want:
                continue
            present, wanted = have.get(chain, []), want.get(chain, [])
            if present != wanted:
                there, right = Counter(present), Counter(wanted)
                # In a built-in chain the other rules are other people's.
                surplus = there - right if ours else Counter({r: there[r] - 1 for r in right})
                for rule in surplus.elements():
                    delete.append(f"-D {chain} {rule}")
                    self._note(rule, self.removed, f"chain {chain} of table {table} had {rule!r}")
                for rule in (right - there).elements():
                    # The guard goes before rules that could let a packet pass it.
                    verb = "-I" if table == "raw" else "-A"
                    add.append(f"{verb} {chain} {rule}")
                    self._note(rule, self.added, f"chain {chain} of table {table} lacked {rule!r}")
            if ours and chain not in want:
                drop.append(f"-X {chain}")
                self.structure.append(f"chain {chain} of table {table} was left over")
        return new + delete + add + drop

    def _note(self, rule: str, mappings: list[Mapping], otherwise: str) -> None:
        mapping = chains.parse(rule)
        if mapping is not None:
            mappings.append(mapping)
        else:
            self.structure.append(otherwise)

    def repairs(self, settings: Iterable[str]) -> Repairs:
        """All of it, with the settings that were wrong."""
        return Repairs(tuple(self.added), tuple(self.removed), (*self.structure, *settings))

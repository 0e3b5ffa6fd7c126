"""What the iptables chains hold, what a change to them takes, and where they differ."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from socket import inet_ntoa

from netalloc.errors import InUseError, NetallocError, NotAllocatedError
from netalloc.model import Mapping, Repairs
from netalloc.portmap import chains
from netalloc.portmap.chains import Rules
from netalloc.portmap.table import describe

_PIECE = 256  # lines: enough to make the cost of handing them on vanish

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

    @classmethod
    def of(cls, nat: Rules, mappings: Iterable[Mapping], name: str) -> "Known":
        """From the rules that were written for these mappings."""
        sizes = {chain: len(nat[chain]) for chain in nat if chains.is_ours(chain, name)}
        return cls({mapping.key: mapping for mapping in mappings}, sizes)

    def change(
        self, add: Sequence[Mapping], remove: Sequence[Mapping], name: str
    ) -> tuple["Known", Iterator[str]]:
        """What will be known after a change, and the lines for iptables-restore.

        Raises InUseError or NotAllocatedError when the change cannot be made. The sizes of
        what is returned are right when all lines have been taken.
        """
        if name not in self.sizes:
            raise NetallocError(f"chain {name} is missing: setup() makes it, reconcile() mends it")
        present = dict(self.present)
        removal: list[Mapping] = []
        for mapping in remove:
            found = present.pop(mapping.key, None)
            if found is None or found != mapping:
                there = describe(found) if found is not None else "nothing"
                raise NotAllocatedError(
                    f"{describe(mapping)} is not mapped: the kernel has {there} for that port"
                )
            removal.append(found)
        for mapping in add:
            key = mapping.host_ip, mapping.protocol, mapping.port
            if key in present:
                holder = present[key]
                raise InUseError(f"{describe(mapping)} is held by {describe(holder)}", holder.owner)
            present[key] = mapping
        after = Known(present, dict(self.sizes))
        return after, after._lines(add, removal, name)

    def _lines(self, add: Iterable[Mapping], remove: Iterable[Mapping], name: str) -> Iterator[str]:
        """The lines that iptables-restore needs for a change; `sizes` follows as they go."""
        sizes = self.sizes
        touched: set[str] = set()
        for mapping in remove:
            way = chains.path(mapping, name)
            touched.update(way[1:])
            sizes[way[-1]] -= 1
            yield f"-D {way[-1]} {chains.rule(mapping)}\n"
        yield from self._additions(add, name)
        for chain in sorted(touched, reverse=True):  # small letters, the leaves, come first
            if sizes[chain] == 0:
                above = chains.parent(chain)
                sizes[above] -= 1
                del sizes[chain]
                yield f"-D {above} {chains.jump(chain)}\n-X {chain}\n"

    def _additions(self, add: Iterable[Mapping], name: str) -> Iterator[str]:
        sizes = self.sizes
        lines: list[str] = []

        def make(above: str, chain: str) -> None:
            # -N fails where another process was quicker; `:CHAIN` would flush it.
            lines.append(f"-N {chain}\n-A {above} {chains.jump(chain)}\n")
            sizes[chain] = 0
            sizes[above] += 1

        bits, dnat = chains.LEAF_BITS, chains.DNAT
        leaf, protocol, holder, head = -1, "", "", ""
        for mapping in add:
            port = mapping.port
            if mapping.count > 1 or mapping.owner or mapping.host_ip is not None:
                leaf = -1
                holder = chains.holder(mapping, name, sizes, make)
                lines.append(f"-A {holder} {chains.rule(mapping)}\n")
            else:
                # As chains.rule writes it, but in a third of the time: nearly all are of
                # this kind, and mappings of one leaf come one after the other.
                if port >> bits != leaf or mapping.protocol != protocol:
                    leaf, protocol = port >> bits, mapping.protocol
                    holder = chains.holder(mapping, name, sizes, make)
                    head = f"-A {holder} {chains.match(protocol)}"
                ip, to = mapping.dest
                ip4 = inet_ntoa(int(ip).to_bytes(4, "big"))
                lines.append(f"{head} {port} {dnat} {ip4}:{to}\n")
            sizes[holder] += 1
            if len(lines) >= _PIECE:
                yield "".join(lines)
                lines.clear()
        yield "".join(lines)


@dataclass
class Difference:
    """Collects what the kernel's rules lack and have too much, table by table."""

    name: str
    added: list[Mapping] = field(default_factory=list)
    removed: list[Mapping] = field(default_factory=list)
    structure: list[str] = field(default_factory=list)

    def lines(self, table: str, have: Rules, want: Rules, known: Rules | None = None) -> list[str]:
        """The lines that turn what is there into what should be, touching nothing else.

        In a chain of others only the rules in `known` (default: the wanted ones) are ours.
        """
        known = want if known is None else known
        idle = self._idle(have, want)
        new, delete, add, drop = [], [], [], []
        for chain in want:
            if chain not in have and chains.is_ours(chain, self.name):
                new.append(f"-N {chain}\n")
                self.structure.append(f"chain {chain} of table {table} was missing")
        for chain in {**have, **want}:
            ours = chains.is_ours(chain, self.name)
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
                    if rule.rpartition(" -j ")[2] not in idle:
                        self._note(
                            rule, self.removed, f"chain {chain} of table {table} had {rule!r}"
                        )
                for rule in (right - there).elements():
                    # What guards or accepts goes before rules that decide otherwise.
                    verb = "-A" if ours or table == "nat" else "-I"
                    add.append(f"{verb} {chain} {rule}\n")
                    self._note(rule, self.added, f"chain {chain} of table {table} lacked {rule!r}")
            if ours and chain not in want:
                drop.append(f"-X {chain}\n")
                if chain not in idle:
                    self.structure.append(f"chain {chain} of table {table} was left over")
        return new + delete + add + drop

    def _idle(self, have: Rules, want: Rules) -> set[str]:
        """Groups and leaves that no packet gets anything from: they go, and are no fault.

        Two processes that take their last mappings out of a leaf at one time leave it.
        """
        idle: set[str] = set()
        for chain in sorted(have, reverse=True):  # small letters, the leaves, come first
            if chain not in want and chains.in_tree(chain, self.name):
                jumps = (rule.rpartition(" -j ")[2] for rule in have[chain])
                if all(target in idle for target in jumps):
                    idle.add(chain)
        return idle

    def _note(self, rule: str, mappings: list[Mapping], otherwise: str) -> None:
        mapping = chains.parse(rule)
        if mapping is not None:
            mappings.append(mapping)
        else:
            self.structure.append(otherwise)

    def repairs(self, settings: Iterable[str]) -> Repairs:
        """All of it, with the settings that were wrong."""
        return Repairs(tuple(self.added), tuple(self.removed), (*self.structure, *settings))


def removal(have: Rules, known: Rules, name: str) -> list[str]:
    """The lines that take all of ours out of a table, as far as it is there."""
    ours = [chain for chain in have if chains.is_ours(chain, name)]
    jumps = [
        f"-D {chain} {rule}\n"
        for chain in known
        if chain not in ours
        for rule in have.get(chain, ())
        if rule in known[chain]
    ]
    return [*jumps, *(f"-F {chain}\n" for chain in ours), *(f"-X {chain}\n" for chain in ours)]

"""What the iptables chains hold, and the lines that a change to them takes."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from netalloc.errors import InUseError, NetallocError, NotAllocatedError
from netalloc.family import V4, Family
from netalloc.model import PortMapping
from netalloc.portmap.desired import describe
from netalloc.portmap.iptables import rules
from netalloc.portmap.iptables.rules import Rules

_PIECE = 256  # lines: enough to make the cost of handing them on vanish

Key = tuple[IPv4Address | IPv6Address | None, str, int]


@dataclass
class ChainState:
    """One family's mappings that are present, and how many rules each of our chains has."""

    present: dict[Key, PortMapping]
    sizes: dict[str, int]

    @classmethod
    def read(cls, nat: Rules, name: str, family: Family = V4) -> "ChainState":
        """From all rules of table nat."""
        present: dict[Key, PortMapping] = {}
        sizes = {chain: len(nat[chain]) for chain in nat if rules.is_ours(chain, name)}
        for chain in sizes:
            for rule in nat[chain]:
                mapping = rules.parse(rule, family)
                if mapping is not None and rules.chain_path(mapping, name)[-1] == chain:
                    # The first rule is the one that packets meet.
                    present.setdefault(_key(mapping), mapping)
        return cls(present, sizes)

    @classmethod
    def of(cls, nat: Rules, mappings: Iterable[PortMapping], name: str) -> "ChainState":
        """From the rules that were written for these mappings."""
        sizes = {chain: len(nat[chain]) for chain in nat if rules.is_ours(chain, name)}
        return cls({_key(mapping): mapping for mapping in mappings}, sizes)

    def change(
        self, add: Sequence[PortMapping], remove: Sequence[PortMapping], name: str
    ) -> "ChainChange":
        """What a change takes; nothing is different until it is `done`. Linear in the batch.

        Raises InUseError or NotAllocatedError when the change cannot be made.
        """
        if name not in self.sizes:
            raise NetallocError(f"chain {name} is missing: setup() makes it, reconcile() mends it")
        gone: dict[Key, PortMapping] = {}
        for mapping in remove:
            key = _key(mapping)
            found = None if key in gone else self.present.get(key)
            if found is None or found != mapping:
                there = describe(found) if found is not None else "nothing"
                raise NotAllocatedError(
                    f"{describe(mapping)} is not mapped: the kernel has {there} for that port"
                )
            gone[key] = found
        new: dict[Key, PortMapping] = {}
        present = self.present
        for mapping in add:
            key = mapping.host_ip, mapping.protocol, mapping.host_port
            if key in new or (key in present and key not in gone):
                holder = new.get(key) or present[key]
                raise InUseError(f"{describe(mapping)} is held by {describe(holder)}", holder.owner)
            new[key] = mapping
        return ChainChange(self, new, gone, name)


def _key(mapping: PortMapping) -> Key:
    return mapping.host_ip, mapping.protocol, mapping.host_port


class ChainChange:
    """A change of the mappings that has not been made yet."""

    def __init__(
        self,
        state: ChainState,
        add: dict[Key, PortMapping],
        remove: dict[Key, PortMapping],
        name: str,
    ) -> None:
        self._state = state
        self._add = add
        self._remove = remove
        self._name = name
        self._sizes = _Sizes(state.sizes)

    def done(self) -> None:
        """All lines were taken and the kernel has it so."""
        for key in self._remove:
            del self._state.present[key]
        self._state.present.update(self._add)
        self._sizes.take_over()

    def lines(self) -> Iterator[str]:
        """The lines that iptables-restore needs, made as they are taken."""
        sizes, name = self._sizes, self._name
        touched: set[str] = set()
        for mapping in self._remove.values():
            path = rules.chain_path(mapping, name)
            touched.update(path[1:])
            sizes.add(path[-1], -1)
            yield f"-D {path[-1]} {rules.rule(mapping)}\n"
        yield from self._additions()
        for chain in sorted(touched, reverse=True):  # small letters, the leaves, come first
            if sizes.get(chain) == 0:
                above = rules.parent(chain)
                sizes.add(above, -1)
                sizes.changed[chain] = None
                yield f"-D {above} {rules.jump(chain)}\n-X {chain}\n"

    def _additions(self) -> Iterator[str]:
        sizes, name = self._sizes, self._name
        lines: list[str] = []

        def make(above: str, chain: str) -> None:
            # -N fails where another process was quicker; `:CHAIN` would flush it.
            lines.append(f"-N {chain}\n-A {above} {rules.jump(chain)}\n")
            sizes.changed[chain] = 0
            sizes.add(above, 1)

        bits, dnat, endpoint = rules.LEAF_BITS, rules.DNAT, rules.endpoint
        leaf, protocol, holder, head = -1, "", "", ""
        for mapping in self._add.values():
            port = mapping.host_port
            if mapping.count > 1 or mapping.owner or mapping.host_ip is not None:
                leaf = -1
                holder = rules.leaf_chain(mapping, name, sizes, make)
                lines.append(f"-A {holder} {rules.rule(mapping)}\n")
            else:
                # As rules.rule writes it, but in a third of the time: nearly all are of
                # this kind, and mappings of one leaf come one after the other.
                if port >> bits != leaf or mapping.protocol != protocol:
                    leaf, protocol = port >> bits, mapping.protocol
                    holder = rules.leaf_chain(mapping, name, sizes, make)
                    head = f"-A {holder} {rules.match(protocol)}"
                ip, to = mapping.dest
                lines.append(f"{head} {port} {dnat} {endpoint(ip)}:{to}\n")
            sizes.add(holder, 1)
            if len(lines) >= _PIECE:
                yield "".join(lines)
                lines.clear()
        yield "".join(lines)


class _Sizes:
    """How many rules each chain will have; only what differs is kept, None where it is gone."""

    def __init__(self, before: dict[str, int]) -> None:
        self._before = before
        self.changed: dict[str, int | None] = {}

    def __contains__(self, chain: object) -> bool:
        return isinstance(chain, str) and self.get(chain) is not None

    def get(self, chain: str) -> int | None:
        if chain in self.changed:
            return self.changed[chain]
        return self._before.get(chain)

    def add(self, chain: str, count: int) -> None:
        self.changed[chain] = (self.get(chain) or 0) + count

    def take_over(self) -> None:
        for chain, size in self.changed.items():
            if size is None:
                self._before.pop(chain, None)
            else:
                self._before[chain] = size

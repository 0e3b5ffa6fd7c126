"""What the iptables chains hold, and the lines that a change to them takes."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from socket import inet_ntoa

from netalloc.errors import InUseError, NetallocError, NotAllocatedError
from netalloc.model import PortMapping
from netalloc.portmap.desired import describe
from netalloc.portmap.iptables import rules
from netalloc.portmap.iptables.rules import Rules

_PIECE = 256  # lines: enough to make the cost of handing them on vanish

Key = tuple[IPv4Address | None, str, int]


@dataclass
class ChainState:
    """The mappings that are present, and how many rules each of our chains has."""

    present: dict[Key, PortMapping]
    sizes: dict[str, int]

    @classmethod
    def read(cls, nat: Rules, name: str) -> "ChainState":
        """From all rules of table nat."""
        present: dict[Key, PortMapping] = {}
        sizes = {chain: len(nat[chain]) for chain in nat if rules.is_ours(chain, name)}
        for chain in sizes:
            for rule in nat[chain]:
                mapping = rules.parse(rule)
                if mapping is not None and rules.chain_path(mapping, name)[-1] == chain:
                    # The first rule is the one that packets meet.
                    present.setdefault(mapping.key, mapping)
        return cls(present, sizes)

    @classmethod
    def of(cls, nat: Rules, mappings: Iterable[PortMapping], name: str) -> "ChainState":
        """From the rules that were written for these mappings."""
        sizes = {chain: len(nat[chain]) for chain in nat if rules.is_ours(chain, name)}
        return cls({mapping.key: mapping for mapping in mappings}, sizes)

    def change(
        self, add: Sequence[PortMapping], remove: Sequence[PortMapping], name: str
    ) -> tuple["ChainState", Iterator[str]]:
        """What will be known after a change, and the lines for iptables-restore.

        Raises InUseError or NotAllocatedError when the change cannot be made. The sizes of
        what is returned are right when all lines have been taken.
        """
        if name not in self.sizes:
            raise NetallocError(f"chain {name} is missing: setup() makes it, reconcile() mends it")
        present = dict(self.present)
        removal: list[PortMapping] = []
        for mapping in remove:
            found = present.pop(mapping.key, None)
            if found is None or found != mapping:
                there = describe(found) if found is not None else "nothing"
                raise NotAllocatedError(
                    f"{describe(mapping)} is not mapped: the kernel has {there} for that port"
                )
            removal.append(found)
        for mapping in add:
            key = mapping.host_ip, mapping.protocol, mapping.host_port
            if key in present:
                holder = present[key]
                raise InUseError(f"{describe(mapping)} is held by {describe(holder)}", holder.owner)
            present[key] = mapping
        after = ChainState(present, dict(self.sizes))
        return after, after._lines(add, removal, name)

    def _lines(
        self, add: Iterable[PortMapping], remove: Iterable[PortMapping], name: str
    ) -> Iterator[str]:
        """The lines that iptables-restore needs for a change; `sizes` follows as they go."""
        sizes = self.sizes
        touched: set[str] = set()
        for mapping in remove:
            path = rules.chain_path(mapping, name)
            touched.update(path[1:])
            sizes[path[-1]] -= 1
            yield f"-D {path[-1]} {rules.rule(mapping)}\n"
        yield from self._additions(add, name)
        for chain in sorted(touched, reverse=True):  # small letters, the leaves, come first
            if sizes[chain] == 0:
                above = rules.parent(chain)
                sizes[above] -= 1
                del sizes[chain]
                yield f"-D {above} {rules.jump(chain)}\n-X {chain}\n"

    def _additions(self, add: Iterable[PortMapping], name: str) -> Iterator[str]:
        sizes = self.sizes
        lines: list[str] = []

        def make(above: str, chain: str) -> None:
            # -N fails where another process was quicker; `:CHAIN` would flush it.
            lines.append(f"-N {chain}\n-A {above} {rules.jump(chain)}\n")
            sizes[chain] = 0
            sizes[above] += 1

        bits, dnat = rules.LEAF_BITS, rules.DNAT
        leaf, protocol, holder, head = -1, "", "", ""
        for mapping in add:
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
                ip4 = inet_ntoa(int(ip).to_bytes(4, "big"))
                lines.append(f"{head} {port} {dnat} {ip4}:{to}\n")
            sizes[holder] += 1
            if len(lines) >= _PIECE:
                yield "".join(lines)
                lines.clear()
        yield "".join(lines)

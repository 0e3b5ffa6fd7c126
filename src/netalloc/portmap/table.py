"""The desired mappings of a port mapper, and which ones exclude each other."""

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address

from netalloc.errors import InUseError, NotAllocatedError
from netalloc.model import Mapping

Key = tuple[IPv4Address | None, str, int]
_Port = tuple[str, int]


class MappingTable:
    """A set of mappings in which no two claim the same port, as sockets would.

    A port on every address (host_ip None) excludes the same port on any one address and
    the other way round; the same port on two addresses, or of two protocols, is two ports.
    Checks, additions and removals take O(ports of the mapping).
    """

    def __init__(self, mappings: Iterable[Mapping] = ()) -> None:
        self._by_key: dict[Key, Mapping] = {}
        self._everywhere: dict[_Port, Mapping] = {}
        self._at: dict[_Port, dict[IPv4Address, Mapping]] = {}
        self.add(mappings)

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[Mapping]:
        return iter(self._by_key.values())

    def holder(self, mapping: Mapping) -> Mapping | None:
        """The mapping that excludes this one, if there is any."""
        for number in mapping.ports:
            port = mapping.protocol, number
            if holder := self._everywhere.get(port):
                return holder
            if at := self._at.get(port):
                if mapping.host_ip is None:
                    return next(iter(at.values()))
                if holder := at.get(mapping.host_ip):
                    return holder
        return None

    def add(self, mappings: Iterable[Mapping]) -> None:
        """Add all or none; InUseError names the holder."""
        done: list[Mapping] = []
        for mapping in mappings:
            if holder := self.holder(mapping):
                self.remove(done)
                raise InUseError(f"{describe(mapping)} is held by {describe(holder)}", holder.owner)
            self._by_key[mapping.key] = mapping
            for number in mapping.ports:
                if mapping.host_ip is None:
                    self._everywhere[mapping.protocol, number] = mapping
                else:
                    at = self._at.setdefault((mapping.protocol, number), {})
                    at[mapping.host_ip] = mapping
            done.append(mapping)

    def remove(self, mappings: Iterable[Mapping]) -> None:
        """Remove mappings that `find` returned."""
        for mapping in mappings:
            del self._by_key[mapping.key]
            for number in mapping.ports:
                port = mapping.protocol, number
                if mapping.host_ip is None:
                    del self._everywhere[port]
                elif len(self._at[port]) == 1:
                    del self._at[port]
                else:
                    del self._at[port][mapping.host_ip]

    def find(self, port: int, protocol: str, host_ip: IPv4Address | None) -> Mapping | None:
        """The mapping of that port; NotAllocatedError for a port within a block."""
        if found := self._by_key.get((host_ip, protocol, port)):
            return found
        inside = self._everywhere.get((protocol, port))
        if host_ip is not None:
            inside = self._at.get((protocol, port), {}).get(host_ip)
        if inside is not None:
            raise NotAllocatedError(
                f"port {port}/{protocol} is part of {describe(inside)}, which goes as a whole"
            )
        return None


def describe(mapping: Mapping) -> str:
    """A mapping in a message: "0.0.0.0:8080/tcp -> 10.0.0.2:80"."""
    last = f"-{mapping.ports[-1]}" if mapping.count > 1 else ""
    ip, port = mapping.dest
    owner = f" of {mapping.owner}" if mapping.owner else ""
    host = mapping.host_ip or "0.0.0.0"
    return f"{host}:{mapping.port}{last}/{mapping.protocol} -> {ip}:{port}{owner}"

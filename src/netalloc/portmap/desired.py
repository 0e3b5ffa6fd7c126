"""The desired mappings of a port mapper, and which ones exclude each other."""

from collections.abc import Iterable, Iterator

from netalloc.address_values import IP
from netalloc.errors import InUseError, NotAllocatedError
from netalloc.family import family_of
from netalloc.model import PortMapping

_Port = tuple[int, str, int]  # version of IP, protocol, port


class MappingTable:
    """A set of mappings in which no two claim the same port, as sockets would.

    A port on every address (host_ip None) excludes the same port on any one address and
    the other way round; the same port on two addresses, of two protocols, or of two versions
    of IP is two ports.
    Checks, additions and removals take O(ports of the mapping).
    """

    def __init__(self, mappings: Iterable[PortMapping] = ()) -> None:
        self._everywhere: dict[_Port, PortMapping] = {}
        self._at: dict[_Port, dict[IP, PortMapping]] = {}
        self.add(mappings)

    def __iter__(self) -> Iterator[PortMapping]:
        for (_, _, port), mapping in self._everywhere.items():
            if mapping.host_port == port:  # a block has an entry for each of its ports
                yield mapping
        for (_, _, port), at in self._at.items():
            for mapping in at.values():
                if mapping.host_port == port:
                    yield mapping

    def holder(self, mapping: PortMapping) -> PortMapping | None:
        """The mapping that excludes this one, if there is any."""
        for number in mapping.ports:
            port = mapping.version, mapping.protocol, number
            if holder := self._everywhere.get(port):
                return holder
            at = self._at.get(port, {})
            if mapping.host_ip is None and at:
                return next(iter(at.values()))
            if mapping.host_ip is not None and mapping.host_ip in at:
                return at[mapping.host_ip]
        return None

    def add(self, mappings: Iterable[PortMapping]) -> None:
        """Add all or none; InUseError names the holder."""
        done: list[PortMapping] = []
        for mapping in mappings:
            try:
                self.add_one(mapping)
            except InUseError:
                self.remove(done)
                raise
            done.append(mapping)

    def add_one(self, mapping: PortMapping) -> None:
        """The same for one."""
        everywhere = self._everywhere
        if mapping.count == 1 and mapping.host_ip is None:
            # Nearly all of them: a third of the time of the general way.
            port = mapping.version, mapping.protocol, mapping.host_port
            if port not in everywhere and not (self._at and port in self._at):
                everywhere[port] = mapping
                return
        if holder := self.holder(mapping):
            raise InUseError(f"{describe(mapping)} is held by {describe(holder)}", holder.owner)
        for number in mapping.ports:
            port = mapping.version, mapping.protocol, number
            if mapping.host_ip is None:
                everywhere[port] = mapping
            else:
                self._at.setdefault(port, {})[mapping.host_ip] = mapping

    def remove(self, mappings: Iterable[PortMapping]) -> None:
        """Remove mappings that are in the table."""
        for mapping in mappings:
            for number in mapping.ports:
                port = mapping.version, mapping.protocol, number
                if mapping.host_ip is None:
                    del self._everywhere[port]
                elif len(self._at[port]) == 1:
                    del self._at[port]
                else:
                    del self._at[port][mapping.host_ip]

    def find(
        self, port: int, protocol: str, host_ip: IP | None, version: int
    ) -> PortMapping | None:
        """The mapping of that port; NotAllocatedError for a port within a block."""
        if host_ip is None:
            found = self._everywhere.get((version, protocol, port))
        else:
            found = self._at.get((version, protocol, port), {}).get(host_ip)
        if found is not None and found.host_port != port:
            raise NotAllocatedError(
                f"port {port}/{protocol} is part of {describe(found)}, which goes as a whole"
            )
        return found


def describe(mapping: PortMapping) -> str:
    """In a message: "0.0.0.0:8080/tcp -> 10.0.0.2:80", "[::]:8080/tcp -> [fd00::2]:80"."""
    last = f"-{mapping.ports[-1]}" if mapping.count > 1 else ""
    ip, port = mapping.dest
    owner = f" of {mapping.owner}" if mapping.owner else ""
    host = str(mapping.host_ip or family_of(mapping.version).every)
    to = str(ip)
    if mapping.version == 6:
        host, to = f"[{host}]", f"[{to}]"
    return f"{host}:{mapping.host_port}{last}/{mapping.protocol} -> {to}:{port}{owner}"

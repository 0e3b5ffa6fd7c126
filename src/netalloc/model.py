"""The values that the layers hand each other."""

from dataclasses import dataclass, field
from ipaddress import AddressValueError, IPv4Address

from netalloc.errors import OutOfRangeError

PROTOCOLS = ("tcp", "udp", "sctp")
ANY = IPv4Address("0.0.0.0")


def check_protocol(protocol: str) -> str:
    """The protocol itself; OutOfRangeError when it is none of PROTOCOLS."""
    if protocol not in PROTOCOLS:
        raise OutOfRangeError(f"protocol {protocol!r} is none of {', '.join(PROTOCOLS)}")
    return protocol


def check_port(port: int) -> int:
    """The port itself; OutOfRangeError outside 1 to 65535."""
    if not isinstance(port, int) or isinstance(port, bool) or not 1 <= port <= 65535:
        raise OutOfRangeError(f"port {port!r} is not in 1 to 65535")
    return port


def as_ipv4(ip: IPv4Address | str, what: str) -> IPv4Address:
    """An IPv4Address from text; OutOfRangeError, naming `what`, when it is none."""
    if isinstance(ip, IPv4Address):
        return ip
    try:
        return IPv4Address(ip)
    except (AddressValueError, TypeError):
        raise OutOfRangeError(f"{what} {ip!r} is not an IPv4 address") from None


def as_host_ip(ip: IPv4Address | str | None) -> IPv4Address | None:
    """The host address of a mapping; None and 0.0.0.0 both mean every address."""
    if ip is None:
        return None
    ip = as_ipv4(ip, "host address")
    return None if ip == ANY else ip


@dataclass(frozen=True, slots=True)
class Mapping:
    """A host port, or `count` contiguous ones, that lead to a container.

    `dest` is (address, port). `host_ip` None means every address of the host. A block
    (count > 1) keeps its port numbers: the container sees the port the client asked for,
    so `dest` must name the same first port. `owner` is shown in the kernel's listing
    where the backend can and takes no part in comparison.

    >>> Mapping(8080, ("10.0.0.2", 80)).key
    (None, 'tcp', 8080)
    """

    port: int
    dest: tuple[IPv4Address, int]
    protocol: str = "tcp"
    host_ip: IPv4Address | None = None
    count: int = 1
    owner: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        check_protocol(self.protocol)
        check_port(self.port)
        ip, port = self.dest
        check_port(port)
        if type(ip) is not IPv4Address:
            object.__setattr__(self, "dest", (as_ipv4(ip, "destination"), port))
        if self.host_ip is not None:
            object.__setattr__(self, "host_ip", as_host_ip(self.host_ip))
        if self.count != 1:
            self._check_block(port)

    def _check_block(self, dest_port: int) -> None:
        if not 1 <= self.count <= 65536 - self.port:
            raise OutOfRangeError(f"{self.count} ports from {self.port} do not end by 65535")
        if dest_port != self.port:
            raise OutOfRangeError(
                f"a block keeps its ports: destination port {dest_port} is not {self.port}"
            )

    @property
    def key(self) -> tuple[IPv4Address | None, str, int]:
        """What is mapped, as opposed to where to."""
        return self.host_ip, self.protocol, self.port

    @property
    def ports(self) -> range:
        """The host ports of this mapping."""
        return range(self.port, self.port + self.count)


@dataclass(frozen=True, slots=True)
class Repairs:
    """What a reconciliation found and mended; false when there was nothing to do."""

    added: tuple[Mapping, ...] = ()
    removed: tuple[Mapping, ...] = ()
    structure: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.structure)

"""What IPv4 and IPv6 differ in, for all that is not the same by itself."""

from __future__ import annotations

from netalloc.light import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network


class Family(NamedTuple):
    """One of the two; numbers are those of linux/socket.h and linux/netfilter.h."""

    version: int
    af: int  # AF_INET, AF_INET6: also NFPROTO_...
    bits: int  # of an address
    word: str  # what nft calls it
    address_type: str  # what nft calls its addresses
    loopback: str  # the network that is the host itself, wherever it comes from
    iptables: str  # the command
    settings: str  # the directory below /proc/sys/net
    forwarding: tuple[str, ...]  # the setting that makes the host a router
    bridge_nf: str  # the setting that shows bridged frames to iptables
    bridge_nf_link: int  # IFLA_BR_NF_CALL_..., the same of one bridge

    @property
    def size(self) -> int:
        """Bytes of an address."""
        return self.bits // 8

    @property
    def suffix(self) -> str:
        """What names of our own end in, beside the ones that IPv4 has."""
        return "" if self.version == 4 else "6"

    @property
    def every(self) -> str:
        """The address that stands for each one of a host."""
        return "0.0.0.0" if self.version == 4 else "::"

    @property
    def header(self) -> bytes:
        """What a message of netfilter's begins with: struct nfgenmsg."""
        return bytes((self.af, 0, 0, 0))


V4 = Family(
    4, 2, 32, "ip", "ipv4_addr", "127.0.0.0/8", "iptables", "ipv4", ("net", "ipv4", "ip_forward"),
    "bridge-nf-call-iptables", 36,
)  # fmt: skip
V6 = Family(
    6, 10, 128, "ip6", "ipv6_addr", "::1/128", "ip6tables", "ipv6",
    ("net", "ipv6", "conf", "all", "forwarding"), "bridge-nf-call-ip6tables", 37,
)  # fmt: skip
FAMILIES = (V4, V6)
UNIQUE_LOCAL = "fc00::/7"  # addresses that no other network routes to: RFC 4193


def family_of(version: int) -> Family:
    """The family of that version of IP."""
    return V4 if version == 4 else V6


class NetworkPair(NamedTuple):
    """The networks of containers that are on one link: one of each family, or one alone."""

    v4: IPv4Network | None = None
    v6: IPv6Network | None = None

    @property
    def families(self) -> tuple[Family, ...]:
        """Those that it has."""
        return tuple([f for f, one in zip(FAMILIES, self, strict=True) if one is not None])

    def __str__(self) -> str:
        return " and ".join(str(one) for one in self if one is not None) or "any network"


NO_NETWORK = NetworkPair()

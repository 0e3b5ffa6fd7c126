"""Bad input through the public names: the named error, the value in it, and nothing changed."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lab import Lab
from netalloc import (
    CommandError,
    ExhaustedError,
    InterfaceError,
    InUseError,
    InvalidValueError,
    IPAllocator,
    NetallocError,
    NetworkManager,
    NotAllocatedError,
    PortAllocator,
    PortMapper,
    StoreError,
    interface_address,
    ip_to_int,
    iptables,
    network_range,
    network_size,
)

BACKENDS = ("nftables", "iptables")


class Host:
    """A manager with one container that publishes 8080, and what of it can be seen."""

    def __init__(self) -> None:
        self.manager = NetworkManager("br0", network="10.88.0.1/24", backend="null")
        self.web = self.manager.allocate(owner="web")
        self.web.allocate_port(80, host_port=8080)

    def seen(self) -> list[tuple[Any, ...]]:
        found = self.manager.interfaces()
        return [(one.address, one.owner, one.generation, one.ports()) for one in found]


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    with made.manager:
        yield made


def released(host: Host) -> Any:
    one = host.manager.allocate(owner="gone")
    one.release()
    return one


Step = Callable[[Host], object]

MANAGED: list[tuple[type[NetallocError], str, Step]] = [
    # the addresses
    (InvalidValueError, "10.9.0.1", lambda h: h.manager.allocate(ip="10.9.0.1")),
    (InvalidValueError, "10.88.0.0", lambda h: h.manager.allocate(ip="10.88.0.0")),
    (InvalidValueError, "10.88.0.1", lambda h: h.manager.allocate(ip="10.88.0.1")),
    (InvalidValueError, "10.88.0.255", lambda h: h.manager.allocate(ip="10.88.0.255")),
    (InvalidValueError, "10.88.0", lambda h: h.manager.allocate(ip="10.88.0")),
    (InvalidValueError, "::1", lambda h: h.manager.allocate(ip="::1")),
    (InUseError, "10.88.0.2 is held by web", lambda h: h.manager.allocate(ip="10.88.0.2")),
    (InvalidValueError, "-1", lambda h: h.manager.allocate_many(-1)),
    (ExhaustedError, "254", lambda h: h.manager.allocate_many(254)),
    (InvalidValueError, "99999", lambda h: h.manager.allocate_many(2, ports=(80, 99999))),
    # the ports
    (InvalidValueError, "0", lambda h: h.web.allocate_port(0)),
    (InvalidValueError, "65536", lambda h: h.web.allocate_port(65536)),
    (InvalidValueError, "'80'", lambda h: h.web.allocate_port("80")),
    (InvalidValueError, "80.0", lambda h: h.web.allocate_port(80.0)),
    (InvalidValueError, "70000", lambda h: h.web.allocate_port(80, host_port=70000)),
    (InvalidValueError, "icmp", lambda h: h.web.allocate_port(80, "icmp")),
    (InvalidValueError, "TCP", lambda h: h.web.allocate_port(80, "TCP")),
    (InvalidValueError, "localhost", lambda h: h.web.allocate_port(80, host_ip="localhost")),
    (InvalidValueError, "::1", lambda h: h.web.allocate_port(80, host_ip="::1")),
    (InUseError, "8080", lambda h: h.web.allocate_port(81, host_port=8080)),
    (InUseError, "8080", lambda h: h.web.allocate_port(81, host_port=8080, host_ip="192.0.2.1")),
    # giving back what is not there
    (NotAllocatedError, "9999", lambda h: h.web.release_port(9999)),
    (NotAllocatedError, "8080/udp", lambda h: h.web.release_port(8080, "udp")),
    (NotAllocatedError, "10.88.0.3", lambda h: released(h).release()),
    (NotAllocatedError, "10.88.0.3", lambda h: released(h).allocate_port(80)),
]


@pytest.mark.parametrize(("error", "value", "step"), MANAGED)
def test_a_manager_refuses(host: Host, error: type[NetallocError], value: str, step: Step) -> None:
    before = host.seen()
    with pytest.raises(error) as refused:
        step(host)
    assert value in str(refused.value)
    assert host.seen() == before


ALONE: list[tuple[type[NetallocError], str, Callable[[], object]]] = [
    (InvalidValueError, "10.0.0.1/33", lambda: IPAllocator("10.0.0.1/33")),
    (InvalidValueError, "hello", lambda: IPAllocator("hello")),
    (InvalidValueError, "10.0.0.1/24", lambda: IPAllocator("10.0.0.1/24", exclude=["10.0.0.0/24"])),
    (InvalidValueError, "beyond the first 2**64", lambda: IPAllocator("::/0").reserve("fd00::1")),
    (InvalidValueError, "-1", lambda: IPAllocator("10.0.0.1/24", cooldown=-1)),
    (NotAllocatedError, "10.0.0.9", lambda: IPAllocator("10.0.0.1/24").release("10.0.0.9")),
    (InvalidValueError, "10.0.1.9", lambda: IPAllocator("10.0.0.1/24").release("10.0.1.9")),
    (InvalidValueError, "1.2.3", lambda: ip_to_int("1.2.3")),
    (InvalidValueError, "-1", lambda: ip_to_int(-1)),
    (InvalidValueError, "10.0.0.1/99", lambda: network_range("10.0.0.1/99")),
    (InvalidValueError, "33", lambda: network_size(33)),
    (InvalidValueError, "no port", lambda: PortAllocator(range(0))),
    (InvalidValueError, "69999", lambda: PortAllocator(range(1, 70000))),
    (InvalidValueError, "sctpp", lambda: PortAllocator().acquire("sctpp")),
    (InvalidValueError, "ipfw", lambda: PortMapper("ipfw")),
    (InterfaceError, "nosuch", lambda: interface_address("nosuch")),
    (InterfaceError, "nosuch", lambda: NetworkManager("nosuch")),
    (
        InvalidValueError,
        "ipfw",
        lambda: NetworkManager("br0", network="10.0.0.1/8", backend="ipfw"),
    ),
]


@pytest.mark.parametrize(("error", "value", "step"), ALONE)
def test_a_part_refuses(error: type[NetallocError], value: str, step: Callable[[], object]) -> None:
    with pytest.raises(error) as refused:
        step()
    assert value in str(refused.value)


# What would have to be made in the kernel, were it not refused before.
MADE: list[tuple[type[NetallocError], str, dict[str, Any]]] = [
    (InvalidValueError, "10.0.0.1/33", {"network": "10.0.0.1/33"}),
    (InvalidValueError, "no port", {"ports": range(0)}),
    (InvalidValueError, "0", {"ports": range(9, -1, -1)}),
    (StoreError, "/nosuch/store", {"store": "/nosuch/store"}),
]


@pytest.mark.root
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("error", "value", "arguments"), MADE)
def test_a_manager_is_not_made(
    nft_lab: Lab, backend: str, error: type[NetallocError], value: str, arguments: dict[str, Any]
) -> None:
    before = nft_lab.run("nft", "list", "ruleset")
    with pytest.raises(error) as refused:
        NetworkManager("br0", backend=backend, **arguments)
    assert value in str(refused.value)
    assert nft_lab.run("nft", "list", "ruleset") == before


@pytest.mark.root
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["x" * 29, "a b", "-x", "", "nat'"])
def test_a_name_that_cannot_be_one_is_refused(nft_lab: Lab, backend: str, name: str) -> None:
    before = nft_lab.run("nft", "list", "ruleset")
    with pytest.raises(InvalidValueError) as refused:
        PortMapper(backend, bridge="br0", name=name).setup()
    assert repr(name) in str(refused.value)
    assert nft_lab.run("nft", "list", "ruleset") == before


@pytest.mark.root
@pytest.mark.parametrize(
    ("backend", "name"),
    [("iptables", "DOCKER-USER"), ("iptables", "KUBE-SERVICES"), ("nftables", "firewalld")],
)
def test_a_name_of_others_is_refused(nft_lab: Lab, backend: str, name: str) -> None:
    with pytest.raises(InUseError, match=name):
        PortMapper(backend, bridge="br0", name=name)


@pytest.mark.root
@pytest.mark.parametrize(("backend", "tool"), [("nftables", "nft"), ("iptables", "iptables-save")])
def test_a_missing_command_is_named(
    nft_lab: Lab, monkeypatch: pytest.MonkeyPatch, backend: str, tool: str
) -> None:
    monkeypatch.setenv("PATH", "/nosuch")
    with pytest.raises(CommandError, match=f"{tool} is not on PATH"):
        NetworkManager("br0", backend=backend)
    with pytest.raises(CommandError, match="iptables is not on PATH"):
        iptables("-S")

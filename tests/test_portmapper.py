"""PortMapper over the null backend: what excludes what, and what a failure leaves."""

import threading
from contextlib import suppress

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from netalloc.errors import (
    InterfaceError,
    InUseError,
    InvalidValueError,
    NotAllocatedError,
    OutOfRangeError,
)
from netalloc.model import PortMapping
from netalloc.portmap.mapper import PortMapper
from netalloc.portmap.null import Null

DEST = ("10.0.0.2", 80)


@pytest.fixture
def mapper():
    return PortMapper("null")


def test_mappings_are_those_that_were_made(mapper):
    with mapper:
        first = mapper.map(8080, DEST)
        second = mapper.map(8080, DEST, "udp", owner="web")
        assert mapper.mappings == [first, second] == mapper.backend.mappings()
        assert second.owner == "web"
        mapper.unmap(8080)
        assert mapper.mappings == [second]
        with pytest.raises(NotAllocatedError, match=r"0\.0\.0\.0:8080/tcp is not mapped"):
            mapper.unmap(8080)
        mapper.unmap(8080, missing_ok=True)
    assert mapper.mappings == []


@pytest.mark.parametrize(
    "arguments",
    [
        (0, DEST),
        (65536, DEST),
        (-1, DEST),
        ("80", DEST),
        (True, DEST),
        (80, ("10.0.0.2", 0)),
        (80, ("10.0.0.2", 65536)),
        (80, ("ten", 80)),
        (80, ("::1", 80)),
        (80, DEST, "icmp"),
        (80, DEST, "TCP"),
        (80, DEST, "tcp", "256.0.0.1"),
        (80, DEST, "tcp", "::1"),
    ],
)
def test_bad_input_is_named_and_changes_nothing(mapper, arguments):
    with pytest.raises(InvalidValueError) as caught:
        mapper.map(*arguments)
    values = (arguments[0], *arguments[1], *arguments[2:])
    assert any(repr(value) in str(caught.value) for value in values)
    assert mapper.mappings == []


@pytest.mark.parametrize("count", [0, -1, 2, 65536])
def test_bad_blocks(mapper, count):
    with pytest.raises(OutOfRangeError):
        mapper.map(65535, ("10.0.0.2", 65535), count=count)
    with pytest.raises(OutOfRangeError, match="container port 65535"):
        mapper.map(8000, ("10.0.0.2", 65535), count=2)
    assert mapper.mappings == []


@pytest.mark.parametrize("arguments", [(0,), (80, "icmp"), (80, "tcp", "nope")])
def test_bad_unmap(mapper, arguments):
    with pytest.raises(InvalidValueError):
        mapper.unmap(*arguments, missing_ok=True)


def test_bad_constructor_arguments():
    with pytest.raises(OutOfRangeError, match="'ipfw' is none of auto, nftables, iptables, null"):
        PortMapper("ipfw")
    with pytest.raises(OutOfRangeError, match=r"10\.0\.0\.0/33"):
        PortMapper("null", network="10.0.0.0/33")
    with pytest.raises(InterfaceError, match="no-such-bridge"):
        PortMapper("null", bridge="no-such-bridge")


@pytest.mark.parametrize(
    ("held", "asked", "clash"),
    [
        ((80, None), (80, None), True),
        ((80, None), (80, "10.0.0.1"), True),
        ((80, "10.0.0.1"), (80, None), True),
        ((80, "10.0.0.1"), (80, "0.0.0.0"), True),
        ((80, "10.0.0.1"), (80, "10.0.0.1"), True),
        ((80, "10.0.0.1"), (80, "10.0.0.9"), False),
        ((80, None), (81, None), False),
    ],
)
def test_addresses_exclude_each_other_as_sockets_do(mapper, held, asked, clash):
    mapper.map(held[0], DEST, host_ip=held[1])
    mapper.map(held[0], DEST, "udp", host_ip=held[1])
    if clash:
        with pytest.raises(InUseError, match=rf"{asked[0]}/tcp .* is held by .*:{held[0]}/tcp"):
            mapper.map(asked[0], DEST, host_ip=asked[1])
        assert len(mapper.mappings) == 2
    else:
        mapper.map(asked[0], DEST, host_ip=asked[1])


def test_blocks_exclude_what_they_cover(mapper):
    block = mapper.map(7000, ("10.0.0.2", 7000), count=100, owner="ftp")
    for port, count in ((7000, 1), (7099, 1), (6990, 11), (7050, 10), (6000, 3000)):
        with pytest.raises(InUseError, match="of ftp") as caught:
            mapper.map(port, ("10.0.0.3", port), count=count)
        assert caught.value.holder == "ftp"
    for port in (6999, 7100):
        mapper.map(port, DEST)
    with pytest.raises(NotAllocatedError, match=r"7050/tcp is part of .*7000-7099"):
        mapper.unmap(7050)
    mapper.unmap(7000)
    assert block not in mapper.mappings
    mapper.map(7050, DEST)


def test_batches_are_all_or_nothing(mapper):
    batch = [PortMapping(port, DEST) for port in range(1, 101)]
    mapper.map(100, DEST, "udp")
    mapper.map(100, DEST, host_ip="10.0.0.1")
    before = mapper.mappings
    with pytest.raises(InUseError, match="100/tcp"):
        mapper.map_many(batch)
    with pytest.raises(InUseError, match="1/tcp"):
        mapper.map_many([batch[0], batch[1], batch[0]])
    assert mapper.mappings == before == mapper.backend.mappings()
    mapper.map_many(batch[:-1])
    with pytest.raises(NotAllocatedError, match="100/tcp"):
        mapper.unmap_many(batch)
    with pytest.raises(NotAllocatedError, match="1/tcp"):
        mapper.unmap_many([batch[0], batch[0]])
    with pytest.raises(NotAllocatedError, match=r"10\.0\.0\.9"):
        mapper.unmap_many([PortMapping(1, ("10.0.0.9", 80))])
    assert len(mapper.mappings) == 101
    mapper.unmap_many(batch, missing_ok=True)
    assert mapper.mappings == before
    mapper.map_many([])
    mapper.unmap_many([])


class Failing(Null):
    """A kernel that refuses at will, before or instead of a change."""

    broken = False

    def apply(self, add, remove=()):
        if self.broken:
            raise OSError("broken")
        super().apply(add, remove)


def test_what_the_kernel_refuses_is_not_mapped():
    backend = Failing()
    mapper = PortMapper(backend)
    mapper.map(80, DEST)
    backend.broken = True
    with pytest.raises(OSError, match="broken"):
        mapper.map_many([PortMapping(81, DEST), PortMapping(82, DEST)])
    with pytest.raises(OSError, match="broken"):
        mapper.unmap(80)
    backend.broken = False
    assert [m.host_port for m in mapper.mappings] == [80]
    mapper.map(81, DEST)
    mapper.unmap(80)


@pytest.mark.root
def test_auto_takes_nftables_and_says_why_not(make_lab, monkeypatch, caplog):
    caplog.set_level("INFO", "netalloc.portmap")
    lab = make_lab("legacy")
    assert PortMapper(bridge=lab.bridge).backend.name == "nftables"
    assert "by nftables" in caplog.text
    monkeypatch.setenv("PATH", "/run/lab/legacy")
    with PortMapper(bridge=lab.bridge) as mapper:
        assert mapper.backend.name == "iptables"
        mapper.map(80, (lab.containers[0].ip, 80))
    assert "by iptables" in caplog.text and "nft is not on PATH" in caplog.text


def test_rules_that_others_took_away_do_not_block_an_unmap():
    mapper = PortMapper("null")
    kept = [mapper.map(port, DEST) for port in (1, 2, 3)]
    mapper.backend.apply((), [kept[1]])
    with pytest.raises(NotAllocatedError, match=r"gone from the kernel before.*:2/tcp"):
        mapper.unmap_many(kept)
    assert mapper.mappings == [] == mapper.backend.mappings()
    mapper.map(2, DEST)
    mapper.backend.cleanup()
    mapper.unmap(2, missing_ok=True)
    assert mapper.mappings == []


def test_reconcile_says_what_it_did(mapper):
    kept = [mapper.map(port, DEST) for port in (1, 2)]
    stranger = PortMapping(9, DEST)
    mapper.backend.apply([stranger], [kept[0]])
    repairs = mapper.reconcile()
    assert (repairs.added, repairs.removed) == ((kept[0],), (stranger,))
    assert not mapper.reconcile()
    assert mapper.reconcile([stranger]).added == (stranger,)
    assert mapper.mappings == [stranger]
    with pytest.raises(InUseError):
        mapper.reconcile([stranger, PortMapping(9, ("10.0.0.7", 1))])
    assert mapper.mappings == [stranger]


def test_threads_never_share_a_port(mapper):
    won = []

    def work():
        for port in range(1, 400):
            with suppress(InUseError):
                won.append(mapper.map(port, DEST))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (
        sorted(m.host_port for m in won)
        == list(range(1, 400))
        == sorted(m.host_port for m in mapper.mappings)
    )


class Sockets(RuleBasedStateMachine):
    """The mapper agrees with the obvious model: a set of (protocol, address, port)."""

    hosts = st.sampled_from([None, "10.0.0.1", "10.0.0.9"])
    ports = st.integers(1, 12)
    kinds = st.sampled_from(["tcp", "udp"])

    def __init__(self):
        super().__init__()
        self.mapper = PortMapper("null")
        self.model = {}

    def claims(self, port, count, protocol, host):
        every = [None, "10.0.0.1", "10.0.0.9"] if host is None else [host]
        return {(protocol, at, n) for at in every for n in range(port, port + count)}

    @rule(port=ports, count=st.integers(1, 4), protocol=kinds, host=hosts)
    def map(self, port, count, protocol, host):
        claims = self.claims(port, count, protocol, host)
        # a wildcard also takes the addresses nobody named yet
        free = not any(claims & held for held in self.model.values())
        try:
            self.mapper.map(port, ("10.0.0.2", port), protocol, host, count=count)
            assert free
            self.model[host, protocol, port] = claims
        except InUseError:
            assert not free

    @rule(port=ports, protocol=kinds, host=hosts)
    def unmap(self, port, protocol, host):
        try:
            self.mapper.unmap(port, protocol, host)
            del self.model[host, protocol, port]
        except NotAllocatedError:
            assert (host, protocol, port) not in self.model

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def unmap_one_that_is_there(self, data):
        host, protocol, port = data.draw(st.sampled_from(sorted(self.model, key=str)))
        self.mapper.unmap(port, protocol, host)
        del self.model[host, protocol, port]

    @invariant()
    def agrees(self):
        keys = {
            (m.host_ip and str(m.host_ip), m.protocol, m.host_port) for m in self.mapper.mappings
        }
        assert keys == set(self.model)
        assert set(self.mapper.backend.mappings()) == set(self.mapper.mappings)


TestSockets = Sockets.TestCase

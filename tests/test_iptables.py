"""The iptables backend: its text, and what it does to a private host's tables."""

import fcntl
import random
import socket
import subprocess
import sys
from ipaddress import IPv4Address, IPv6Address
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import Lab
from netalloc.errors import (
    CommandError,
    InterfaceError,
    InUseError,
    NetallocError,
    NotAllocatedError,
    OutOfRangeError,
)
from netalloc.family import FAMILIES, family_of
from netalloc.host import sysctl
from netalloc.model import PortMapping
from netalloc.portmap.iptables import commands, rules
from netalloc.portmap.iptables.backend import Iptables
from netalloc.portmap.link import Link
from netalloc.portmap.mapper import PortMapper

STRANGERS = """\
*nat
:OTHERS - [0:0]
-A PREROUTING -p tcp -m tcp --dport 22 -j OTHERS
-A POSTROUTING -s 172.16.0.0/12 ! -o br7 -m comment --comment "ours, not yours" -j MASQUERADE
-A OTHERS -j RETURN
COMMIT
*filter
:FORWARD DROP [0:0]
-A FORWARD -i br7 -j ACCEPT
COMMIT
*raw
-A PREROUTING -s 198.51.100.0/24 -j DROP
COMMIT
"""

fours = st.builds(IPv4Address, st.integers(1, 2**32 - 1))
sixes = st.builds(IPv6Address, st.integers(256, 2**128 - 1)).filter(
    lambda ip: not ip.is_multicast and ip.ipv4_mapped is None
)
protocols = st.sampled_from(["tcp", "udp", "sctp"])
owners = st.none() | st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1)


@st.composite
def mappings(draw):
    port = draw(st.integers(1, 65535))
    count = draw(st.integers(1, min(3000, 65536 - port))) if draw(st.booleans()) else 1
    to = draw(st.just(port) | st.integers(1, 65536 - count))
    addresses = draw(st.sampled_from([fours, sixes]))
    host_ip = draw(st.none() | addresses)
    return PortMapping(port, (draw(addresses), to), draw(protocols), host_ip, count, draw(owners))


@given(mappings())
def test_a_rule_is_read_back(mapping):
    text = rules.rule(mapping)
    read = rules.parse(text, family_of(mapping.version))
    assert rules.parse(text, family_of(10 - mapping.version)) is None
    assert read == mapping
    assert read.owner == mapping.owner


@given(mappings())
def test_the_tree_leads_to_the_rule(mapping):
    path = rules.chain_path(mapping, "netalloc")
    for above, chain in pairwise(path):
        assert rules.parent(chain) == above
        assert rules.is_ours(chain, "netalloc") and len(chain) <= rules.MAX_NAME
        jump = rules.jump(chain)
        assert rules.is_jump(jump, "netalloc")
        first, last = map(int, jump.split()[5].split(":"))
        assert first <= mapping.host_port <= mapping.ports[-1] <= last
        assert jump.split()[1] == mapping.protocol


@pytest.mark.parametrize("owner", ["ü", "x" * 255, "\u202e"])
def test_an_owner_that_no_rule_can_hold_is_cut_to_what_it_can(owner):
    text = rules.rule(PortMapping(1, ("10.0.0.1", 1), owner=owner))
    assert text.isascii() and text.isprintable() and len(text) < 400
    assert rules.parse(text) == PortMapping(1, ("10.0.0.1", 1))


@pytest.mark.parametrize(
    "text",
    [
        "-p tcp -m tcp --dport 0 -j DNAT --to-destination 10.0.0.1:80",
        "-p tcp -m tcp --dport 1:2 -j DNAT --to-destination 10.0.0.1:80",
        "-p tcp -m tcp --dport 1 -j DNAT --to-destination 10.0.0.1",
        "-p tcp -m tcp --dport 1 -j DNAT --to-destination 10.0.0.1:80 --random",
        "-p tcp -m tcp --dport 9:1 -j DNAT --to-destination 10.0.0.1",
        "-s 10.0.0.1/32 -p tcp -m tcp --dport 1 -j DNAT --to-destination 10.0.0.1:80",
        "-p tcp -m tcp --dport 1 -j DNAT --to-destination fd00::2",
        "-p tcp -m tcp --dport 1 -j DNAT --to-destination [fd00::2]",
        "-p tcp -m tcp --dport 1:9 -j DNAT --to-destination [fd00::2]",
        "-p tcp -m tcp --dport 1 -j DNAT --to-destination [::ffff:10.0.0.1]:80",
        "-d fd00::/64 -p tcp -m tcp --dport 1 -j DNAT --to-destination [fd00::2]:80",
        "-j RETURN",
    ],
)
def test_other_rules_are_no_mappings(text):
    assert [rules.parse(text, family) for family in FAMILIES] == [None, None]


@pytest.mark.parametrize("name", ["x" * 25, "", "a b", "-a", "a!", "n/nat", "n/t3u", "a\n"])
def test_impossible_chain_names(name):
    with pytest.raises(OutOfRangeError, match=r"25 characters: 24 is the most|cannot be called"):
        Iptables(name)


@pytest.mark.parametrize("name", ["DOCKER-USER", "CNI-DN", "KUBE-SERVICES", "cali-nat", "OUTPUT"])
def test_names_taken_by_others(name):
    with pytest.raises(InUseError, match=name):
        PortMapper("iptables", name=name)


@pytest.mark.parametrize("bridge", ["", "br+", "a b", "x" * 16, "br0 -j ACCEPT"])
def test_impossible_bridges(bridge):
    with pytest.raises(OutOfRangeError, match="bridge"):
        Iptables(link=Link(bridge))


def make(lab: Lab, name: str = "netalloc") -> PortMapper:
    return lab.keep(PortMapper("iptables", bridge=lab.bridge, network=lab.network, name=name))


def some(count: int, first: int = 20000) -> list[PortMapping]:
    return [PortMapping(first + i, (f"10.200.{i >> 7}.{2 + i % 128}", 80)) for i in range(count)]


@pytest.mark.root
def test_names_the_variant(lab):
    assert commands.variant() == lab.variant


@pytest.mark.root
def test_chains_in_the_other_iptables_are_told(lab, caplog):
    """As a machine has them whose alternatives were switched under a running netalloc."""
    other = "nft" if lab.variant == "legacy" else "legacy"
    with make(lab):
        assert not caplog.records
        if lab.variant == "nft":
            # Looking for legacy chains makes no legacy tables.
            assert Path("/proc/thread-self/net/ip_tables_names").read_text() == ""
        lab.use(other)
        with make(lab):
            (record,) = caplog.records
            assert f"iptables-{lab.variant} has a chain netalloc, too" in record.message
        lab.use(lab.variant)


@pytest.mark.root
def test_the_kernel_says_our_rules_as_we_do(lab):
    """Rules are compared as text, so that every kind of them must come back as written."""
    owners = ["plain", "with blank", "quo\"te's and \\", "-dash", "x" * 255, "%s $HOME `id`"]
    batch = [
        PortMapping(port, ("10.200.0.2", port), protocol, host_ip, count, owner)
        for number, (protocol, owner) in enumerate(
            (protocol, owner) for protocol in ("tcp", "udp", "sctp") for owner in [None, *owners]
        )
        for port, count in ((1000 + number, 1), (2000 + number * 100, 50))
        for host_ip in (None, IPv4Address("192.0.2.1"))
        if host_ip is None or count == 1
    ]
    batch = [m for m in batch if not (m.host_ip is None and m.count == 1)]
    batch += [PortMapping(65535, ("10.200.0.2", 1)), PortMapping(1, ("10.200.0.2", 65535))]
    batch += [PortMapping(64000, ("10.200.0.2", 64000), "udp", count=1536)]
    with make(lab) as mapper:
        mapper.map_many(batch)
        found = mapper.backend.mappings()
        assert set(found) == set(batch)
        assert {m: m.owner for m in found} == {m: m.owner for m in batch}
        assert not mapper.reconcile()
        mapper.unmap_many(batch)
        assert mapper.backend.mappings() == []


@pytest.mark.root
def test_cleanup_restores_the_tables_with_others_rules_in_between(lab):
    lab.run("iptables-restore", "--noflush", input=STRANGERS)
    before = lab.rules()
    mapper = make(lab)
    mapper.setup()
    mapper.map_many(some(300))
    lab.run(
        "iptables", "-t", "nat", "-I", "PREROUTING", "-p", "tcp", "--dport", "23", "-j", "RETURN"
    )
    lab.run(
        "iptables", "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", "24", "-j", "RETURN"
    )
    assert lab.rules() != before
    lab.run(
        "iptables", "-t", "nat", "-D", "PREROUTING", "-p", "tcp", "--dport", "23", "-j", "RETURN"
    )
    lab.run(
        "iptables", "-t", "nat", "-D", "PREROUTING", "-p", "tcp", "--dport", "24", "-j", "RETURN"
    )
    mapper.cleanup()
    assert lab.rules() == before
    mapper.cleanup()
    assert lab.rules() == before


@pytest.mark.root
def test_unmapping_everything_leaves_what_setup_made(lab):
    with make(lab) as mapper:
        before = lab.rules()
        batch = some(200)
        mapper.map_many(batch)
        random.Random(1).shuffle(batch)
        for mapping in batch[:20]:
            mapper.unmap(mapping.host_port)
        mapper.unmap_many(batch[20:])
        assert lab.rules() == before


CRASHING = """
import os, signal
from netalloc.model import PortMapping
from netalloc.portmap.mapper import PortMapper
mapper = PortMapper("iptables", bridge="br0", network="10.200.0.0/16")
mapper.setup()
mapper.map_many([PortMapping(20000 + i, ("10.200.0.9", 80)) for i in range(100)])
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.root
def test_a_killed_predecessor_is_taken_over(lab):
    before = lab.rules()
    with make(lab):
        alone = lab.rules()
    died = subprocess.run([sys.executable, "-c", CRASHING], check=False, stdout=subprocess.DEVNULL)
    assert died.returncode == -9
    assert lab.rules() != before
    mapper = make(lab)
    repairs = mapper.setup()
    assert len(repairs.removed) == 100 and not repairs.added
    assert lab.rules() == alone
    mapper.cleanup()
    assert lab.rules() == before
    assert sysctl.read("net", "ipv4", "conf", lab.bridge, "route_localnet") == "0"


@pytest.mark.root
def test_a_predecessors_mappings_can_be_adopted(lab):
    batch = some(100)
    first = make(lab)
    first.setup()
    first.map_many(batch)
    rules = lab.rules()
    second = make(lab)
    second.setup(adopt=True)
    assert lab.rules() == rules
    assert set(second.mappings) == set(batch)
    second.unmap(batch[0].host_port)
    second.cleanup()


@pytest.mark.root
def test_setup_repeated_doubles_nothing(lab):
    with make(lab) as mapper:
        mapper.map_many(some(10))
        rules = lab.rules()
        mapper.setup()
        make(lab).backend.setup()
        assert lab.rules() == rules


DAMAGE = [
    ["-t", "nat", "-F"],
    ["-t", "nat", "-D", "PREROUTING", "-m", "addrtype", "--dst-type", "LOCAL", "-j", "netalloc"],
    ["-t", "nat", "-D", "POSTROUTING", "-j", "netalloc/nat"],
    ["-t", "nat", "-F", "netalloc"],
    ["-t", "nat", "-F", "netalloc/nat"],
    ["-t", "raw", "-F"],
    ["-t", "raw", "-F", "netalloc"],
]


@pytest.mark.root
def test_cleanup_with_missing_pieces(lab):
    before = lab.rules()
    for damage in DAMAGE:
        mapper = make(lab)
        mapper.setup()
        mapper.map_many(some(3))
        lab.run("iptables", *damage)
        mapper.cleanup()
        assert lab.rules() == before, damage
    make(lab).cleanup()
    assert lab.rules() == before


@pytest.mark.root
def test_settings_are_put_back_as_they_were(lab):
    name = ("net", "ipv4", "conf", lab.bridge, "route_localnet")
    forward = ("net", "ipv4", "ip_forward")
    for value in ("0", "1"):
        sysctl.write(value, *name)
        sysctl.write(value, *forward)
        with make(lab):
            assert sysctl.read(*name) == sysctl.read(*forward) == "1"
            assert sysctl.read("net", "ipv4", "conf", "all", "route_localnet") == "0"
            make(lab).setup()  # knows what was there before, as after a crash
        assert sysctl.read(*name) == sysctl.read(*forward) == value


@pytest.mark.root
def test_a_missing_bridge_is_named_before_anything_changes(lab):
    before = lab.rules()
    with pytest.raises(InterfaceError, match="br9"):
        PortMapper("iptables", bridge="br9", network=lab.network).setup()
    with pytest.raises(InterfaceError, match="br9"):
        PortMapper("iptables", bridge="br9")
    assert lab.rules() == before
    assert sysctl.read("net", "ipv4", "ip_forward") == "0"


@pytest.mark.root
@pytest.mark.parametrize("network", [None, "10.200.0.0/16"])
def test_without_a_bridge(lab, network):
    """Routed containers: no way from 127.0.0.1, and nothing in table raw."""
    before = lab.run("iptables-save")
    c0, c1 = lab.containers
    for protocol in ("tcp", "udp"):
        lab.serve(c0, protocol, 80)
        lab.serve(lab.outside, protocol, 80)
    with PortMapper("iptables", network=network) as mapper:
        for protocol in ("tcp", "udp"):
            mapper.map(8080, (c0.ip, 80), protocol)
            assert lab.ask(lab.outside, protocol, (lab.address, 8080)) == ("c0", lab.outside.ip)
            assert lab.ask(lab.host, protocol, (lab.address, 8080))[0] == "c0"
            if network is not None:
                for place in (c0, c1):
                    assert lab.ask(place, protocol, (lab.address, 8080))[0] == "c0"
                    assert lab.ask(place, protocol, (lab.outside.ip, 80))[1] == lab.address
        assert not mapper.reconcile()
        assert "*raw" not in lab.run("iptables-save")
        assert sysctl.read("net", "ipv4", "conf", lab.bridge, "route_localnet") == "0"
    assert lab.rules() == "" and "*raw" not in before


@pytest.mark.root
def test_a_bridge_that_went_first_does_not_stop_cleanup(lab):
    before = lab.rules()
    with make(lab):
        lab.run("ip", "link", "del", lab.bridge)
    assert lab.rules() == before


@pytest.mark.root
def test_docker_is_a_good_name_where_docker_does_not_run(lab):
    before = lab.rules()
    with make(lab, "DOCKER") as mapper:
        mapper.map(80, ("10.200.0.2", 80))
    assert lab.rules() == before
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind("/run/docker.sock")
        daemon.listen()
        with pytest.raises(InUseError, match="Docker daemon runs"):
            make(lab, "DOCKER").setup()
    assert lab.rules() == before


@pytest.mark.root
@pytest.mark.parametrize("name", ["DOCKER", "OTHERS"])
def test_a_chain_of_others_is_refused(lab, name):
    lab.run("iptables", "-t", "nat", "-N", name)
    lab.run("iptables", "-t", "nat", "-A", name, "-i", "docker0", "-j", "RETURN")
    before = lab.rules()
    for act in (make(lab, name).setup, make(lab, name).cleanup):
        with pytest.raises(InUseError, match=rf"chain {name} .* is another program's.*-i docker0"):
            act()
    assert lab.rules() == before


@pytest.mark.root
def test_a_batch_is_all_or_nothing(lab):
    with make(lab) as mapper:
        mapper.map(20299, ("10.200.0.2", 80))
        before = lab.rules()
        with pytest.raises(InUseError, match=r"20299/tcp"):
            mapper.map_many(some(300))
        assert lab.rules() == before and len(mapper.mappings) == 1
        # A backend that knows nothing yet looks before it acts.
        backend = Iptables(link=Link(lab.bridge))
        with pytest.raises(NotAllocatedError, match="20298"):
            backend.apply(some(10), [PortMapping(20298, ("10.200.0.2", 80))])
        with pytest.raises(InUseError, match="20299"):
            backend.apply(some(300))
        with pytest.raises(NotAllocatedError, match=r"10\.200\.0\.2"):
            backend.apply([], [PortMapping(20299, ("10.200.0.3", 80))])
        assert lab.rules() == before


@pytest.mark.root
def test_a_failing_restore_leaves_nothing(lab, monkeypatch):
    """The command fails at the last line of a batch, after all others were accepted."""
    with make(lab) as mapper:
        before = lab.rules()
        real = commands.run

        def fail_late(command, text=None):
            if command[0] == "iptables-restore":
                text = "".join(text).replace("COMMIT\n", "-A netalloc -j NOWHERE\nCOMMIT\n")
            return real(command, text)

        monkeypatch.setattr(commands, "run", fail_late)
        with pytest.raises(CommandError, match=r"iptables-restore -w 5 --noflush.*status"):
            mapper.map_many(some(300))
        monkeypatch.setattr(commands, "run", real)
        assert lab.rules() == before
        assert mapper.mappings == []
        mapper.map_many(some(300))
        assert not mapper.reconcile()


@pytest.mark.root
def test_two_processes_keep_mappings_in_the_same_chains(lab):
    """Two backends that do not know of each other, as two processes are."""
    one, two = make(lab), make(lab)
    one.setup()
    two.setup(adopt=True)
    dice = random.Random(5)
    held = {one: set(), two: set()}
    for _ in range(60):
        mapper = dice.choice([one, two])
        other = two if mapper is one else one
        port = dice.randrange(30000, 30200)
        if port in held[mapper]:
            mapper.unmap(port)
            held[mapper].discard(port)
        elif port not in held[other]:
            mapper.map(port, ("10.200.0.2", port))
            held[mapper].add(port)
        else:
            with pytest.raises(NotAllocatedError, match=str(port)):
                mapper.backend.apply((), [PortMapping(port, ("10.200.0.3", port))])
    assert {m.host_port for m in one.backend.mappings()} == held[one] | held[two]
    assert not one.reconcile([*one.mappings, *two.mappings])
    one.cleanup()


# Each process maps and unmaps ports of its own, in leaves that all of them share, so that
# chains are made and dropped under the others' feet.
RACING = """
import random, sys
from netalloc.model import PortMapping
from netalloc.portmap.iptables.backend import Iptables
from netalloc.portmap.link import Link
number = int(sys.argv[1])
backend, dice, held = Iptables(link=Link("br0")), random.Random(number), set()
print("ready", flush=True)
sys.stdin.readline()
for _ in range(40):
    mapping = PortMapping(4000 + 10 * dice.randrange(30) + number, ("10.200.0.2", 80))
    if mapping in held:
        backend.apply((), [mapping])
        held.remove(mapping)
    else:
        backend.apply([mapping])
        held.add(mapping)
    if dice.random() < 0.2:
        backend.apply((), list(held))
        held.clear()
print("held", *sorted(mapping.host_port for mapping in held))
"""


@pytest.mark.root
def test_processes_racing_in_the_same_chains(lab):
    with make(lab) as mapper:
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", RACING, str(number)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
            for number in range(4)
        ]  # fmt: skip
        for process in processes:
            while process.stdout.readline() != "ready\n":
                assert process.poll() is None
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        held = []
        for process in processes:
            said, _ = process.communicate()
            assert process.returncode == 0
            held += [PortMapping(int(port), ("10.200.0.2", 80)) for port in said.split()[1:]]
        assert held and set(mapper.backend.mappings()) == set(held)
        assert not mapper.reconcile(held)
        mapper.unmap_many(held)
        assert "netalloc/t" not in lab.run("iptables-save", "-t", "nat").lower()


@pytest.mark.root
def test_mapping_before_setup_says_so(lab):
    mapper = make(lab)
    with pytest.raises(NetallocError, match=r"chain netalloc is missing: setup\(\) makes it"):
        mapper.map(80, ("10.200.0.2", 80))
    assert mapper.mappings == []


@pytest.mark.root
def test_a_held_lock_is_a_bounded_wait_and_a_clear_error(make_lab, monkeypatch):
    lab = make_lab("legacy")
    monkeypatch.setattr(commands, "WAIT", ("-w", "1"))
    with make(lab) as mapper, Path("/run/xtables.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(CommandError, match="xtables lock") as caught:
            mapper.map(80, ("10.200.0.2", 80))
        assert caught.value.status == 4
        assert mapper.mappings == []
        fcntl.flock(lock, fcntl.LOCK_UN)
        mapper.map(80, ("10.200.0.2", 80))


@pytest.mark.root
def test_the_command_waits_and_says_what_failed(lab):
    assert commands.iptables("-t", "nat", "-S", "OUTPUT") == "-P OUTPUT ACCEPT\n"
    with pytest.raises(CommandError) as caught:
        commands.iptables("-t", "nat", "-X", "NOPE")
    assert caught.value.command == ("iptables", "-w", "5", "-t", "nat", "-X", "NOPE")
    assert caught.value.status == 1
    assert caught.value.stderr and caught.value.stderr in str(caught.value)
    assert "iptables -w 5 -t nat -X NOPE" in str(caught.value)


def test_no_iptables_on_path(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CommandError, match="command not found: iptables is not on PATH"):
        commands.iptables("-S")
    with pytest.raises(CommandError, match="command not found: iptables-save"):
        PortMapper("iptables", network="10.0.0.0/8").setup()


UNPRIVILEGED = """
from netalloc.errors import CommandError
from netalloc.portmap.mapper import PortMapper
try:
    PortMapper("iptables", bridge="br0", network="10.200.0.0/16").setup()
except CommandError as error:
    print("CommandError", error)
"""


@pytest.mark.root
def test_a_missing_privilege_is_named(lab):
    before = lab.rules()
    said = lab.run(
        "setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin",
        sys.executable, "-c", UNPRIVILEGED,
    )  # fmt: skip
    assert "CommandError" in said and "lacks CAP_NET_ADMIN" in said
    assert lab.rules() == before

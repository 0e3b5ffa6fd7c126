"""The nftables backend on a real kernel."""

import json
import logging
import os
import random
import select
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from moments import Moments
from netalloc.errors import (
    CommandError,
    InterfaceError,
    InUseError,
    NotAllocatedError,
    OutOfRangeError,
)
from netalloc.family import NetworkPair
from netalloc.host.command import run
from netalloc.host.netlink import NetlinkSocket
from netalloc.model import PortMapping, ReconcileResult
from netalloc.portmap.link import Link
from netalloc.portmap.mapper import PortMapper
from netalloc.portmap.nftables import elements
from netalloc.portmap.nftables.backend import Nftables, batch
from netalloc.portmap.nftables.changes import Changes
from netalloc.portmap.nftables.ruleset import script
from netalloc.portmap.nftables.structure import unavailable
from netalloc.portmap.nftables.table import NftTable
from test_nft_elements import GOLDEN

pytestmark = pytest.mark.root

FIRST = IPv4Address("10.200.0.2")
WEB = PortMapping(8080, (FIRST, 80), owner="web")
OURS = [m.replace(dest=(m.dest[0] + (200 << 16), m.dest[1])) for m in GOLDEN]


def many(count, dest=FIRST):
    return [PortMapping(port, (dest, 80)) for port in range(1, count + 1)]


@pytest.fixture
def make(nft_lab):
    """Makes backends, as several processes would have them, and closes them at the end."""
    with ExitStack() as stack:

        def make(name="netalloc", *, bridge=nft_lab.bridge, network=nft_lab.network):
            networks = NetworkPair(None if network is None else IPv4Network(network))
            backend = Nftables(name, link=Link(bridge), networks=networks)
            stack.callback(backend.close)
            return backend

        yield make


@pytest.fixture
def nft(make):
    backend = make()
    backend.setup()
    return backend


def ruleset(lab):
    return lab.run("nft", "list", "ruleset")


def test_nft_writes_the_same_elements(nft, nft_lab):
    added = {
        "dnat_any": "tcp . 8080 : 10.200.0.2 . 80",
        "dnat_ip": "192.0.2.1 . udp . 53 : 10.200.0.2 . 5353",
        "block_any": "tcp . 9000-9299 : 10.200.0.3",
        "block_ip": "192.0.2.1 . sctp . 9000-9299 : 10.200.0.3",
    }
    for name, element in added.items():
        nft_lab.run("nft", "add", "element", "inet", "netalloc", name, f"{{ {element} }}")
    assert set(nft.mappings()) == set(OURS)
    assert nft.reconcile(OURS) == ReconcileResult()
    nft.apply((), OURS)
    assert nft.mappings() == []


def test_nft_shows_ours_with_their_owners(nft, nft_lab):
    nft.apply([WEB, PortMapping(9000, (FIRST, 9000), "udp", "192.0.2.1", 300, 'game "one"')])
    shown = ruleset(nft_lab)
    assert 'tcp . 8080 comment "web" : 10.200.0.2 . 80' in shown
    assert '192.0.2.1 . udp . 9000-9299 comment "game ?one?" : 10.200.0.2' in shown
    # What nft prints it can read back.
    nft_lab.run("nft", "flush", "ruleset")
    nft_lab.run("nft", "-f", "-", input=shown)
    assert ruleset(nft_lab) == shown
    assert {mapping.owner for mapping in nft.mappings()} == {"web", "game ?one?"}


def test_a_conflict_names_what_is_there(nft):
    nft.apply([WEB, PortMapping(9000, (FIRST, 9000), count=100, owner="game")])
    before = nft.mappings()
    for clash, holder in {
        PortMapping(8080, (FIRST, 81)): "web",
        PortMapping(8080, (FIRST, 80), owner="another"): "web",
        PortMapping(9000, (FIRST, 9000), count=100): "game",
        PortMapping(9050, (FIRST, 9050), count=100): "game",
        PortMapping(8900, (FIRST, 8900), count=1000): "game",
    }.items():
        # All or nothing: the clash is the last of a batch of several messages.
        several = [*many(3000), PortMapping(7000, (FIRST, 7000), "udp", count=9), clash]
        with pytest.raises(InUseError, match=holder) as refused:
            nft.apply(several)
        assert refused.value.holder == holder
        assert nft.mappings() == before
    with pytest.raises(InUseError, match="twice"):
        nft.apply([PortMapping(1, (FIRST, 1)), PortMapping(1, (FIRST, 2))])
    assert nft.mappings() == before


def test_an_older_kernel_does_not_say_which_one_clashes(nft, monkeypatch):
    nft.apply([WEB])
    monkeypatch.setattr(batch, "_culprit", lambda *_: None)
    with pytest.raises(InUseError, match="of web"):
        nft.apply([*many(50), PortMapping(8080, (FIRST, 81))])
    with pytest.raises(InUseError, match="twice"):
        nft.apply([PortMapping(1, (FIRST, 1)), PortMapping(1, (FIRST, 2))])
    monkeypatch.setattr(Changes, "_check_present", lambda *_: None)
    nft.apply(many(50))
    with pytest.raises(NotAllocatedError, match="of web"):
        nft.apply((), [*many(50), PortMapping(8080, (FIRST, 81))])
    assert len(nft.mappings()) == 51


def test_a_long_life_agrees_with_the_oracle(nft_lab):
    """Random batches to the kernel and to the null backend: same answers, same mappings."""
    dice = random.Random(20)
    ours = PortMapper("nftables", bridge=nft_lab.bridge, network=nft_lab.network)
    with ours as ours, PortMapper("null") as oracle:

        def outcome(mapper, work, *arguments):
            try:
                getattr(mapper, work)(*arguments)
            except (InUseError, NotAllocatedError) as error:
                return type(error)

        most = 0
        for step in range(300):
            present = oracle.mappings
            most = max(most, len(present))
            if dice.random() < 0.55:
                call = "map_many", [random_mapping(dice) for _ in range(dice.choice([1, 1, 2, 9]))]
            else:
                known = dice.sample(present, min(len(present), dice.choice([1, 1, 3, 9])))
                strangers = [random_mapping(dice)] * (dice.random() < 0.2)
                call = "unmap_many", [*known, *strangers]
            assert outcome(ours, *call) == outcome(oracle, *call), call
            if step % 20 == 0:
                nft_lab.run("nft", "-f", "-", input=dice.choice(VANDALS))
                ours.reconcile()
            if step % 10 == 0:
                found = ours.backend.mappings()
                assert len(found) == len(set(found))
                assert set(found) == set(ours.mappings) == set(oracle.mappings)
        assert most > 20


VANDALS = (
    "flush ruleset\n",
    "flush map inet netalloc dnat_any\nflush map inet netalloc block_ip\n",
    "delete chain inet netalloc postrouting\n",
    "add element inet netalloc dnat_ip { 192.0.2.1 . tcp . 7 : 10.6.6.6 . 80 }\n",
    "add element inet netalloc block_any { sctp . 1-60000 : 10.6.6.6 }\n",
)


def random_mapping(dice):
    protocol = dice.choice(["tcp", "udp"])
    host_ip = dice.choice([None, None, "192.0.2.1", "192.0.2.11"])
    port = dice.randrange(1000, 4000)
    if dice.random() < 0.2:
        return PortMapping(port, (FIRST, port), protocol, host_ip, dice.randrange(2, 40))
    return PortMapping(port, (FIRST, dice.randrange(1, 65536)), protocol, host_ip, owner="x")


def test_a_stale_owner_removes_nothing(nft):
    other = IPv4Address("10.200.0.4")
    for mapping in OURS:
        moved = PortMapping(
            mapping.host_port,
            (other, mapping.dest[1]),
            mapping.protocol,
            mapping.host_ip,
            mapping.count,
        )
        nft.apply([mapping])
        nft.apply([moved], [mapping])  # a remap is one transaction
        with pytest.raises(NotAllocatedError, match=r"leads to .*10\.200\.0\.4"):
            nft.apply((), [mapping])
        assert nft.mappings() == [moved]
        with pytest.raises(NotAllocatedError):
            nft.apply([PortMapping(1, (FIRST, 1))], [mapping])
        assert nft.mappings() == [moved]
        nft.apply((), [moved])
        with pytest.raises(NotAllocatedError, match="none such"):
            nft.apply((), [moved])
        assert nft.mappings() == []


def test_the_kernel_itself_refuses_a_stale_removal(nft, monkeypatch):
    """Even when the key got its next owner after we had looked."""
    nft.apply([WEB])
    monkeypatch.setattr(Changes, "_check_present", lambda *_: None)
    for count in (0, 2500):
        rest = many(count)
        nft.apply(rest)
        with pytest.raises(NotAllocatedError, match=r"leads to .* of web"):
            nft.apply((), [*rest, PortMapping(8080, (IPv4Address("10.200.0.3"), 80))])
        assert len(nft.mappings()) == count + 1


def test_one_that_got_its_next_owner_after_we_had_looked_stays(nft, make, monkeypatch):
    """The same for one by itself, which goes another way."""
    ask = NetlinkSocket.ask_one

    def overtaken(self, *arguments):
        answer = ask(self, *arguments)
        other.apply([moved], [mapping])
        return answer

    other = make()
    other.setup()
    for mapping in [one for one in OURS if one.count == 1]:
        moved = mapping.replace(dest=("10.200.0.4", 80))
        nft.apply([mapping])
        with monkeypatch.context() as patch:
            patch.setattr(NetlinkSocket, "ask_one", overtaken)
            with pytest.raises(NotAllocatedError, match=r"leads to .*10\.200\.0\.4"):
                nft.apply((), [mapping])
        assert nft.mappings() == [moved]
        nft.apply((), [moved])


@pytest.mark.parametrize("count", [2, 100, 1500])
def test_a_batch_that_removes_what_is_not_there_removes_nothing(nft, count):
    batch = many(count)
    nft.apply(batch[:-1])
    with pytest.raises(NotAllocatedError, match=f":{count}/tcp"):
        nft.apply((), batch)
    assert len(nft.mappings()) == count - 1
    nft.apply((), batch[:-1])
    assert nft.mappings() == []


def test_a_large_map_is_listed_whole_while_the_kernel_rehashes_it(nft):
    batch = many(16382)
    for _ in range(10):  # without looking again about every third listing lacks some
        nft.apply(batch)
        assert len(nft.mappings()) == 16382
        nft.apply((), batch)


def test_setup_adopts_a_predecessors_table_and_cleanup_leaves_nothing(make, nft_lab):
    nft_lab.run("nft", "add", "table", "ip", "stranger")
    before = ruleset(nft_lab)
    crashed = make()
    crashed.setup()
    crashed.apply([WEB])
    set_up = ruleset(nft_lab)
    crashed.close()
    successor = make()
    successor.setup()
    assert ruleset(nft_lab) == set_up  # no rule twice, the element still there
    assert successor.mappings() == [WEB]
    localnet = Path(f"/proc/sys/net/ipv4/conf/{nft_lab.bridge}/route_localnet")
    assert localnet.read_text() == "1\n"
    for _ in range(2):
        successor.cleanup()
        assert ruleset(nft_lab) == before
        assert localnet.read_text() == "0\n"
    with pytest.raises(CommandError, match="setup or reconcile"):
        successor.apply([WEB])
    with pytest.raises(NotAllocatedError):
        successor.apply((), [WEB])
    assert successor.mappings() == []


def test_what_is_as_it_should_be_is_not_loaded_again(make, nft_lab, monkeypatch):
    make().setup()
    loaded = ruleset(nft_lab)
    loads = []

    def counted(*arguments):
        loads.append(arguments)
        return run(*arguments)

    monkeypatch.setattr("netalloc.portmap.nftables.structure.run", counted)
    make().setup()
    assert not make().reconcile([])
    assert not make().reconcile([WEB]).structure
    assert not loads
    nft_lab.run("nft", "flush", "map", "inet", "netalloc", "dnat_any")
    for change in (
        "add rule inet netalloc portmap counter",
        "flush chain inet netalloc guard",
        "delete set inet netalloc fingerprint",
        "flush set inet netalloc fingerprint; add element inet netalloc fingerprint { 7 }",
    ):
        nft_lab.run("nft", change)
        make().setup()
        assert len(loads) == 1, change
        loads.clear()
        assert without_fingerprint(ruleset(nft_lab)) == without_fingerprint(loaded), change


def without_fingerprint(text):
    """The set goes to the end of the table when it is made anew."""
    head, _, tail = text.partition("\tset fingerprint {")
    return head + tail.partition("\t}\n\n")[2]


def test_localnet_that_was_open_before_us_stays_open(make, nft_lab):
    localnet = Path(f"/proc/sys/net/ipv4/conf/{nft_lab.bridge}/route_localnet")
    localnet.write_text("1")
    backend = make()
    backend.setup()
    backend.setup()
    backend.cleanup()
    assert localnet.read_text() == "1\n"


def test_traffic_flows_while_a_successor_sets_up(nft, nft_lab):
    lab = nft_lab
    lab.serve(lab.containers[0], "udp", 80)
    nft.apply([PortMapping(8080, (FIRST, 80), "udp")])
    again = 'while nft -f /dev/fd/3 3<<< "$script"; do :; done'
    command = ["bash", "-c", f"script=$(cat); {again}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as loader:
        try:
            loader.stdin.write(script("netalloc"))
            loader.stdin.close()
            # A new socket each time, so that each is a new flow which the rules decide on.
            answers = [lab.reaches(lab.outside, "udp", (lab.address, 8080)) for _ in range(300)]
        finally:
            loader.kill()
    assert set(answers) == {"c0"}


BREAKAGES = {
    "flush ruleset": "table inet netalloc was missing",
    "delete table inet netalloc": "table inet netalloc was missing",
    "flush chain inet netalloc prerouting; flush chain inet netalloc output; "
    "delete chain inet netalloc output": "chain output was missing",
    "add rule inet netalloc portmap counter": "chain portmap had 1 rules that are not ours",
    "insert rule inet netalloc guard tcp dport 1 drop": "chain guard had 1 rules that are not ours",
    "flush chain inet netalloc postrouting": "chain postrouting had 0 of its 7 rules",
    "add chain inet netalloc output { policy drop; }": "chain output had other properties",
    "add table inet netalloc { flags dormant; }": "table had other properties",
    "delete table inet netalloc; add table inet netalloc; "
    "add map inet netalloc dnat_any { type ipv4_addr : ipv4_addr; }": "map dnat_any had other",
}
CHANGED_ELEMENTS = {
    "flush map inet netalloc dnat_any": (2, 0),
    "delete element inet netalloc dnat_any { tcp . 8080 }": (1, 0),
    "delete element inet netalloc dnat_any { tcp . 8080 }; "
    "add element inet netalloc dnat_any { tcp . 8080 : 10.6.6.6 . 80 }": (1, 1),
    "add element inet netalloc dnat_ip { 1.2.3.4 . tcp . 7 : 10.200.9.9 . 80 }": (0, 1),
    "delete element inet netalloc block_any { tcp . 9000-9299 }; "
    "add element inet netalloc block_any { tcp . 9000-9049 : 10.200.0.2 }": (1, 1),
}


@pytest.mark.parametrize("fresh", [False, True], ids=["same process", "next process"])
def test_reconcile_mends_what_others_broke_and_says_so(nft, make, nft_lab, fresh):
    lab = nft_lab
    lab.serve(lab.containers[0], "tcp", 80)
    desired = [
        WEB,
        PortMapping(9000, (FIRST, 9000), count=300),
        PortMapping(53, (FIRST, 53), "udp"),
    ]
    nft.reconcile(desired)
    right = ruleset(lab)

    def reconciled(breakage):
        lab.run("nft", "-f", "-", input=breakage.replace("; ", "\n") + "\n")
        assert sorted(ruleset(lab).splitlines()) != sorted(right.splitlines()), breakage
        backend = make() if fresh else nft
        found = backend.reconcile(desired)
        assert not backend.reconcile(desired)
        assert sorted(ruleset(lab).splitlines()) == sorted(right.splitlines()), breakage
        assert lab.ask(lab.outside, "tcp", (lab.address, 8080))[0] == "c0", breakage
        return found

    for breakage, said in BREAKAGES.items():
        found = reconciled(breakage)
        assert any(what.startswith(said) for what in found.structure), (breakage, found)
        lost = any(word in breakage for word in ("flush ruleset", "delete table"))
        assert len(found.added) == (3 if lost else 0), (breakage, found)
    for breakage, (added, removed) in CHANGED_ELEMENTS.items():
        found = reconciled(breakage)
        assert (len(found.added), len(found.removed)) == (added, removed), (breakage, found)
        assert not found.structure
    stranger = "add element inet netalloc dnat_any { icmp . 7 : 10.200.3.4 . 5 }"
    assert "which is no whole mapping" in reconciled(stranger).structure[0]
    for setting in ("ip_forward", f"conf/{lab.bridge}/route_localnet"):
        Path("/proc/sys/net/ipv4", setting).write_text("0")
        assert nft.reconcile(desired).structure == (f"net.ipv4.{setting.replace('/', '.')} was 0",)


def test_reconcile_touches_the_difference_only(nft, nft_lab):
    desired = many(2000)
    nft.reconcile(desired)
    with subprocess.Popen(["nft", "monitor"], stdout=subprocess.PIPE, text=True) as monitor:
        # The monitor listens from some moment on: it does when it shows this.
        while not select_line(monitor):
            nft_lab.run("nft", "add", "table", "ip", "stranger")
            nft_lab.run("nft", "delete", "table", "ip", "stranger")
        wanted = [*desired[:-1], PortMapping(5000, (FIRST, 80))]
        assert nft.reconcile(wanted) == ReconcileResult((wanted[-1],), (desired[-1],))
        nft_lab.run("nft", "add", "table", "ip", "end")
        lines = []
        while not lines or "table ip end" not in lines[-1]:
            lines.append(monitor.stdout.readline().strip())
        monitor.terminate()
    elements = [line for line in lines if " element " in line]
    assert elements == [
        "delete element inet netalloc dnat_any { tcp . 2000 : 10.200.0.2 . 80 }",
        "create element inet netalloc dnat_any { tcp . 5000 : 10.200.0.2 . 80 }",
    ]


def select_line(process):
    return select.select([process.stdout], [], [], 0.05)[0]


def test_reconcile_meets_changes_that_happen_meanwhile(nft, make, monkeypatch):
    desired = many(100)
    nft.apply(desired[:50])
    other = make()
    listing, races = NftTable.list, [
        lambda: other.apply(desired[50:51]),  # ours to add is there by now
        lambda: other.apply((), desired[50:51]),
        lambda: other.apply([PortMapping(500, (FIRST, 5))]),  # a stranger's comes ...
        lambda: other.apply((), [PortMapping(500, (FIRST, 5))]),  # ... and goes once it was listed
    ]  # fmt: skip

    def raced(self, *families):
        found = listing(self, *families)
        if self is nft._table and races:
            races.pop(0)()
        return found

    monkeypatch.setattr(NftTable, "list", raced)
    nft.reconcile(desired)
    assert not races or len(races) < 4
    while races:
        nft.reconcile(desired)
    assert not nft.reconcile(desired)
    assert set(nft.mappings()) == set(desired)


def test_reconcile_gives_up_on_somebody_who_never_stops(nft, make, monkeypatch):
    other = make()
    listing = NftTable.list

    def raced(self, *families):
        found = listing(self, *families)
        try:
            other.apply([WEB])
        except InUseError:
            other.apply((), [WEB])
        return found

    monkeypatch.setattr(NftTable, "list", raced)
    with pytest.raises(CommandError, match="changed during 20 repairs"):
        nft.reconcile([PortMapping(8080, (IPv4Address("10.200.0.3"), 80))])


def test_two_instances_do_not_touch_each_other(make, nft_lab):
    first, second = make("first"), make("second")
    for backend in (first, second):
        backend.setup()
        backend.apply([WEB])
    with_both = ruleset(nft_lab)
    first.reconcile([])
    first.reconcile([WEB])
    assert ruleset(nft_lab) == with_both
    first.cleanup()
    assert second.mappings() == [WEB]
    assert not second.reconcile([WEB])  # not even route_localnet, which both need
    localnet = Path(f"/proc/sys/net/ipv4/conf/{nft_lab.bridge}/route_localnet")
    assert localnet.read_text() == "1\n"
    second.cleanup()
    assert localnet.read_text() == "0\n"


def test_bad_names_and_a_missing_bridge_change_nothing(make, nft_lab):
    for name in ("", "1st", "a b", "x" * 29, 'a"', "a;"):
        with pytest.raises(OutOfRangeError):
            Nftables(name)
    for name in ("filter", "kube-proxy", "firewalld"):
        with pytest.raises(InUseError, match=name):
            Nftables(name)
    for bridge in ("", "br*", 'br"', "x" * 16, "a b"):
        with pytest.raises(OutOfRangeError):
            Nftables(link=Link(bridge))
    with pytest.raises(InterfaceError, match="br7"):
        make(bridge="br7").setup()
    assert ruleset(nft_lab) == ""


def test_unavailable_says_why(nft_lab, monkeypatch, tmp_path):
    assert unavailable() is unavailable("netalloc") is None
    assert ruleset(nft_lab) == ""
    with monkeypatch.context() as patched:
        patched.setenv("PATH", str(tmp_path))
        assert "nft is not on PATH" in unavailable()
    code = "from netalloc.portmap.nftables.backend import Nftables\n"
    code += "from netalloc.portmap.nftables.structure import unavailable; print(unavailable())"
    code += "\ntry: Nftables().mappings()\nexcept Exception as error: print(error)"
    found = nft_lab.run("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin",
                        sys.executable, "-c", code)  # fmt: skip
    assert "lacks CAP_NET_ADMIN" in found.splitlines()[-1]
    assert "CAP_NET_ADMIN" in found and "None" not in found


def test_a_namespace_that_limits_a_send_gets_it_in_pieces(nft, monkeypatch, caplog):
    """Where SO_SNDBUFFORCE is refused; the limit that then holds is the kernel's own."""

    monkeypatch.setattr(NetlinkSocket, "_grow", lambda *_: None)
    nft.close()
    batch = many(13000)
    steps = nft._changes.steps(elements.entries(batch), {})
    assert sum(len(step.body) for step in steps) > 2 * nft._table.netlink.max_message
    with caplog.at_level(logging.WARNING):
        nft.apply(batch)
    assert "they go in pieces" in caplog.text
    assert len(nft.mappings()) == len(batch)
    moved = many(13000, IPv4Address("10.200.0.3"))
    nft.apply(moved, batch)
    assert set(nft.mappings()) == set(moved)
    # A clash in the last piece undoes the others.
    extra = [PortMapping(m.host_port, m.dest, "udp") for m in moved]
    for add, remove, error in (
        ([*extra, WEB], (), InUseError),
        ([*batch, WEB, WEB], moved, InUseError),
        (extra, [*moved, PortMapping(40000, (FIRST, 1))], NotAllocatedError),
    ):
        with pytest.raises(error):
            nft.apply(add, remove)
        assert set(nft.mappings()) == set(moved)
    nft.reconcile(batch)
    assert set(nft.mappings()) == set(batch)


def test_a_child_process_opens_its_own_socket(nft):
    nft.apply([WEB])
    before = nft._table.netlink
    nft._table.netlink.pid = -1  # as it looks from a child
    nft.apply([PortMapping(1, (FIRST, 1))])
    assert nft._table.netlink is not before
    assert before.fileno() == -1


def test_killed_at_any_moment_all_or_nothing(nft_lab):
    """In a process of its own without threads, so that it may fork its victims."""
    here = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {here!r}); import test_nftables; "
    done = nft_lab.run(sys.executable, "-c", code + "test_nftables.kill_rounds(50)")
    outcome = json.loads(done.splitlines()[-1])
    assert outcome["before"] + outcome["after"] >= 50


def kill_rounds(rounds):
    old, new = many(3000), many(3000, IPv4Address("10.200.0.3"))
    backend = Nftables()
    backend.setup()
    backend.apply(old)
    took = 0.0
    for add, remove in ((new, old), (old, new)):
        began = time.perf_counter()
        backend.apply(add, remove)
        took = max(took, time.perf_counter() - began)
    moments = Moments(rounds, 1.3 * took, 4)
    for moment in moments:
        ready, starting = os.pipe()
        child = os.fork()
        if child == 0:
            victim = Nftables()
            os.write(starting, b".")
            victim.apply(new, old)
            os._exit(0)
        os.read(ready, 1)
        time.sleep(moment)  # not a wait for anything
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(starting)
        present = set(backend.mappings())
        assert present in (set(old), set(new)), len(present)
        moments.saw(done=present == set(new))
        repairs = backend.reconcile(old)
        assert len(repairs.added) == len(repairs.removed) == (0 if present == set(old) else 3000)
        assert set(backend.mappings()) == set(old)
    sys.stdout.write(json.dumps({"before": moments.early, "after": moments.late}) + "\n")

"""What somebody else breaks is mended, that alone, and it is said what it was."""

import json
import os
import random
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lab import Lab
from netalloc.errors import CommandError, NetallocError
from netalloc.host import sysctl
from netalloc.model import PortMapping
from netalloc.portmap.mapper import PortMapper

pytestmark = pytest.mark.root

BATCH = [
    *(PortMapping(20000 + i, ("10.200.0.2", 80), owner=f"c{i}") for i in range(100)),
    *(PortMapping(20000 + i, ("10.200.0.3", 80), "udp", "192.0.2.1") for i in range(10)),
    PortMapping(30000, ("10.200.0.2", 30000), "udp", count=2000),
]
FIRST = BATCH[0]
RULE = "-p tcp -m tcp --dport 20000 -m comment --comment c0 -j DNAT --to-destination 10.200.0.2:80"
STRANGERS = {
    "nat": "-A PREROUTING -p tcp -m tcp --dport 22 -j RETURN\n"
    "-A POSTROUTING -s 172.16.0.0/12 ! -o br7 -j MASQUERADE\n",
    "raw": "-A PREROUTING -s 198.51.100.0/24 -j DROP\n",
}
LEAF, GROUP, MAIN = "netalloc/t9o", "netalloc/T0j", "netalloc"


def make(lab: Lab) -> PortMapper:
    return lab.keep(PortMapper("iptables", bridge=lab.bridge, network=lab.network))


def restore_strangers(lab: Lab, table: str) -> None:
    lab.run("iptables-restore", "--noflush", input=f"*{table}\n{STRANGERS[table]}COMMIT\n")


# Commands that break something, and what the repair must say: (added, removed, structure).
DAMAGE = {
    "all of table nat flushed": (["-t nat -F"], (111, 0, "PREROUTING of table nat lacked")),
    "all of table raw flushed": (["-t raw -F"], (0, 0, "netalloc of table raw lacked")),
    "the guard's jump deleted": (
        ["-t raw -D PREROUTING -j netalloc"],
        (0, 0, "PREROUTING of table raw lacked"),
    ),
    "main chain flushed": ([f"-t nat -F {MAIN}"], (1, 0, "netalloc of table nat lacked '-p tcp")),
    "a leaf flushed": ([f"-t nat -F {LEAF}"], (32, 0, "")),
    "a leaf deleted": (
        [f"-t nat -F {GROUP}", f"-t nat -F {LEAF}", f"-t nat -X {LEAF}"],
        (32, 0, f"chain {LEAF} of table nat was missing"),
    ),
    "a jump deleted": (
        ["-t nat -D OUTPUT -m addrtype --dst-type LOCAL -j netalloc"],
        (0, 0, "OUTPUT of table nat lacked"),
    ),
    "a jump doubled": (
        ["-t nat -A OUTPUT -m addrtype --dst-type LOCAL -j netalloc"],
        (0, 0, "OUTPUT of table nat had"),
    ),
    "a rule deleted": ([f"-t nat -D {LEAF} {RULE}"], (1, 0, "")),
    "a rule changed": ([f"-t nat -R {LEAF} 1 {RULE}9"], (1, 1, "")),
    "a rule doubled": ([f"-t nat -A {LEAF} {RULE}"], (0, 1, "")),
    "a stale rule before the live one": (
        [f"-t nat -I {LEAF} -p tcp --dport 20000 -j DNAT --to-destination 10.200.0.3:80"],
        (0, 1, ""),
    ),
    "a stranger's rule in our chain": (
        [f"-t nat -I {MAIN} -p tcp --dport 20000 -j REDIRECT --to-ports 1"],
        (0, 0, "netalloc of table nat had '-p tcp -m tcp --dport 20000 -j REDIRECT"),
    ),
    "a stranger's rule in our guard": (
        ["-t raw -I netalloc -i br0 -j ACCEPT"],
        (0, 0, "netalloc of table raw had '-i br0 -j ACCEPT'"),
    ),
    "a masquerade deleted": (
        ["-t nat -D netalloc/nat 2"],
        (0, 0, "netalloc/nat of table nat lacked"),
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_only_the_difference_is_mended(lab, damage):
    commands, (added, removed, structure) = DAMAGE[damage]
    for table in STRANGERS:
        restore_strangers(lab, table)
    lab.serve(lab.containers[0], "tcp", 80)
    with make(lab) as mapper:
        mapper.map_many(BATCH)
        assert not mapper.reconcile()
        right = sorted(lab.rules().splitlines())
        for command in commands:
            lab.run("iptables", *command.split())
        if damage.startswith("all"):
            restore_strangers(lab, damage[-11:-8])
        repairs = mapper.reconcile()
        assert (len(repairs.added), len(repairs.removed)) == (added, removed), repairs
        assert structure in "\n".join(repairs.structure)
        assert bool(structure) == bool(repairs.structure), repairs.structure
        assert sorted(lab.rules().splitlines()) == right
        assert not mapper.reconcile()
        assert set(mapper.backend.mappings()) == set(BATCH)
        assert lab.ask(lab.outside, "tcp", (lab.address, FIRST.host_port))[0] == "c0"


def test_settings_are_mended(lab):
    with make(lab) as mapper:
        for name in (("conf", lab.bridge, "route_localnet"), ("ip_forward",)):
            sysctl.write("0", "net", "ipv4", *name)
            assert any(name[-1] in what for what in mapper.reconcile().structure)
            assert sysctl.read("net", "ipv4", *name) == "1"
            assert not mapper.reconcile()


def test_untouched_rules_keep_their_counters(lab):
    lab.serve(lab.containers[0], "tcp", 80)
    with make(lab) as mapper:
        mapper.map_many(BATCH)
        lab.ask(lab.outside, "tcp", (lab.address, 20099))
        lab.run("iptables", "-t", "nat", "-F", LEAF)
        lab.run("iptables", "-t", "raw", "-F")
        assert mapper.reconcile()
        counted = lab.run("iptables-save", "-c", "-t", "nat")
        (line,) = (line for line in counted.splitlines() if "--dport 20099 " in line)
        assert line.startswith("[1:"), line


@pytest.mark.parametrize("backend", ["iptables", "nftables"])
def test_the_whole_ruleset_flushed(nft_lab, backend):
    lab = nft_lab
    lab.serve(lab.containers[0], "tcp", 80)
    with PortMapper(backend, bridge=lab.bridge, network=lab.network) as mapper:
        mapper.map_many(BATCH)
        lab.run("nft", "flush", "ruleset")
        assert lab.reaches(lab.outside, "tcp", (lab.address, FIRST.host_port)) is None
        repairs = mapper.reconcile()
        assert set(repairs.added) == set(BATCH) and repairs.structure
        assert not mapper.reconcile()
        for place in (lab.outside, lab.host, *lab.containers):
            assert lab.ask(place, "tcp", (lab.address, FIRST.host_port))[0] == "c0"
        assert lab.ask(lab.host, "tcp", ("127.0.0.1", FIRST.host_port))[0] == "c0"


def test_rules_flushed_in_mid_operation(lab):
    """The next batch either works or says that the chain is gone; reconcile mends it."""
    with make(lab) as mapper:
        mapper.map_many(BATCH[:50])
        lab.run("iptables", "-t", "nat", "-F")
        mapper.map_many(BATCH[50:60])
        lab.run("iptables", "-t", "nat", "-F")
        lab.run("iptables", "-t", "nat", "-X")
        with pytest.raises(NetallocError, match=r"chain netalloc is missing.*reconcile"):
            mapper.map_many(BATCH[60:70])
        repairs = mapper.reconcile()
        assert set(repairs.added) == set(BATCH[:60]) == set(mapper.mappings)
        mapper.map_many(BATCH[60:])
        assert not mapper.reconcile()


def test_a_mapping_that_somebody_deleted_can_be_unmapped(lab):
    with make(lab) as mapper:
        mapper.map_many(BATCH)
        lab.run("iptables", "-t", "nat", "-D", LEAF, *RULE.split())
        mapper.unmap(FIRST.host_port, missing_ok=True)
        lab.run("iptables", "-t", "nat", "-F")
        mapper.unmap_many(BATCH[1:], missing_ok=True)
        assert mapper.mappings == [] == mapper.backend.mappings()


# Forks a child for each round, which puts a batch into the kernel and is killed, with the
# commands it started, after part of the time that the batch takes.
KILLING = """
import ctypes, json, os, signal, sys, time
from moments import Moments
from netalloc.model import PortMapping
from netalloc.portmap.mapper import PortMapper

backend, rounds = sys.argv[1], int(sys.argv[2])
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: wait for grandchildren
old = [PortMapping(1000 + i, ("10.200.0.9", 80)) for i in range(100)]
new = [PortMapping(20000 + i, ("10.200.0.9", 80)) for i in range(1000)]

def make():
    return PortMapper(backend, bridge="br0", network="10.200.0.0/16")

ready, started = os.pipe()
mapper = make()
mapper.setup()
mapper.map_many(old)

def begun():
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        fresh = make()
        fresh.setup(adopt=True)
        os.write(started, b".")
        fresh.map_many(new)
        os._exit(0)
    os.read(ready, 1)
    return child

child, start = begun(), time.perf_counter()
os.waitpid(child, 0)
took = time.perf_counter() - start
make().reconcile(old)
moments = Moments(rounds, 1.5 * took, 7)
wrong = {"partial": 0, "unrepaired": 0}
for moment in moments:
    child = begun()
    time.sleep(moment)
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        pass
    while True:
        try:
            os.waitpid(-child, 0)
        except ChildProcessError:
            break
    there = set(make().backend.mappings())
    wrong["partial"] += there not in (set(old), set(old + new))
    moments.saw(done=there == set(old + new))
    fresh = make()
    for desired in (old + new, old):
        fresh.reconcile(desired)
        if set(fresh.backend.mappings()) != set(desired) or fresh.reconcile():
            wrong["unrepaired"] += 1
    fresh.close()
print(json.dumps(wrong), file=sys.stderr)
"""


@pytest.mark.parametrize("rounds", ["12", pytest.param("50", marks=pytest.mark.soak)])
@pytest.mark.parametrize("backend", ["iptables-legacy", "iptables-nft", "nftables"])
def test_killed_at_random_moments_of_a_batch(make_lab, backend, rounds):
    make_lab("legacy" if backend == "iptables-legacy" else "nft")
    done = subprocess.run(
        [sys.executable, "-c", KILLING, backend.partition("-")[0], rounds],
        cwd=Path(__file__).parent,  # what it imports is here
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stderr.splitlines()[-1]) == {"partial": 0, "unrepaired": 0}


def random_mapping(dice: random.Random) -> PortMapping:
    protocol = dice.choice(["tcp", "udp"])
    host_ip = dice.choice([None, "192.0.2.1", "192.0.2.11"])
    if dice.random() < 0.2:
        port = dice.randrange(900, 1100)
        return PortMapping(port, ("10.200.0.2", port), protocol, host_ip, dice.randrange(2, 200))
    to = "10.200.0.2", dice.randrange(1, 65536)
    return PortMapping(dice.randrange(900, 1100), to, protocol, host_ip, owner=dice.choice("ab"))


def vandalise(lab: Lab, dice: random.Random) -> None:
    """Flush, delete or add to any of the tables' chains, as nobody should."""
    table = dice.choice(["nat", "nat", "raw"])
    listed = [shlex.split(line) for line in lab.run("iptables", "-t", table, "-S").splitlines()]
    chain = dice.choice([line[1] for line in listed])
    rules = [line for line in listed if line[0] == "-A"]
    kind = dice.randrange(4)
    if kind == 0:
        lab.run("iptables", "-t", table, "-F", chain)
    elif kind == 1 and rules:
        lab.run("iptables", "-t", table, "-D", *dice.choice(rules)[1:])
    elif kind == 2:
        lab.run("iptables", "-t", table, "-I", chain, "-p", "tcp", "--dport", "999", "-j", "RETURN")
    elif rules:
        lab.run("iptables", "-t", table, *dice.choice(rules))  # twice


def test_a_long_life_among_vandals(lab):
    """Random batches, right and wrong ones, and damage: the mapper agrees with an oracle."""
    dice = random.Random(f"vandals {lab.variant}")
    oracle = PortMapper("null")
    with make(lab) as mapper:
        for step in range(120):
            held = oracle.mappings
            if step % 10 == 9:
                vandalise(lab, dice)
                mapper.reconcile()
                assert not mapper.reconcile(), step
            elif dice.random() < 0.6 or not held:
                batch = [random_mapping(dice) for _ in range(dice.choice([1, 1, 3, 10]))]
                assert outcome(mapper.map_many, batch) == outcome(oracle.map_many, batch), step
            else:
                batch = dice.sample(held, dice.randint(1, len(held)))
                if dice.random() < 0.2:
                    batch.append(random_mapping(dice))
                assert outcome(mapper.unmap_many, batch) == outcome(oracle.unmap_many, batch), step
            assert set(mapper.mappings) == set(oracle.mappings), step
            assert set(mapper.backend.mappings()) == set(oracle.mappings), step
        mapper.unmap_many(mapper.mappings)
        assert not mapper.reconcile()
        rules = lab.run("iptables", "-t", "nat", "-S")
        assert "netalloc/t" not in rules.lower()


def outcome(work, batch) -> object:
    try:
        return work(batch)
    except NetallocError as error:
        return type(error), str(error)


def test_a_killed_command_leaves_nothing_and_says_so(lab):
    real = Path(f"/run/lab/{lab.variant}/iptables-restore").readlink()
    wrapper = Path("/run/lab/killed")
    wrapper.mkdir()
    (wrapper / "iptables-restore").write_text(
        f'#!/bin/sh\n{{ head -c 3000; kill -9 $$; }} | {real} iptables-restore "$@"\n'
    )
    (wrapper / "iptables-restore").chmod(0o755)
    with make(lab) as mapper:
        before = lab.rules()
        usual = os.environ["PATH"]
        os.environ["PATH"] = f"{wrapper}:{usual}"
        with pytest.raises(CommandError) as caught:
            mapper.map_many(BATCH)
        os.environ["PATH"] = usual
        assert caught.value.status not in (None, 0)
        assert lab.rules() == before and mapper.mappings == []
        mapper.map_many(BATCH)
        assert not mapper.reconcile()

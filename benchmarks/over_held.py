"""What one more address costs over how many are held: ours, and what else is used for it.

Every contestant has the same network, in which all addresses are held but two: one is taken and
released again, over and over, so that each second search has to pass all that is held. A call
is compared with calls, and a process with processes: there the start and end of a program, and
of Python where it needs it, are part of the cost.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from importlib.util import find_spec
from ipaddress import IPv4Address, summarize_address_range
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import NamedTuple

from netalloc import NetworkManager

HELD = (0, 10, 100, 1_000, 10_000, 50_000)
GATEWAY, FIRST, LAST = (IPv4Address(f"10.0.{end}") for end in ("0.1", "0.2", "255.254"))
HOST_LOCAL = Path("/usr/lib/cni/host-local")
ENOUGH, MOST, LEAST = 0.5, 60, 2  # seconds and pairs of calls for one figure

Step = Callable[[], object]
Made = tuple[Step, Step]  # take one, release it


class Contestant(NamedTuple):
    """`make` gives the two steps, and leaves on the stack what is to be closed."""

    name: str
    process: bool
    make: Callable[[ExitStack, Path, int], Made]
    missing: str | None = None


def last_of(held: int) -> IPv4Address:
    """The last address of a network with room for so many and two."""
    return FIRST + held + 1


def manager_of(store: Path | None, held: int) -> NetworkManager:
    """A manager of that network, of which so many addresses are held."""
    rest = [str(one) for one in summarize_address_range(last_of(held) + 1, LAST)]
    manager = NetworkManager(
        "br0", network=f"{GATEWAY}/16", exclude=rest, backend="null", store=store
    )
    manager.allocate_many(held, owner="crowd")
    return manager


def in_memory(opened: ExitStack, folder: Path, held: int) -> Made:
    manager = opened.enter_context(manager_of(None, held))
    return lambda: manager.allocate("one"), lambda: manager.release("one")


def in_file(opened: ExitStack, folder: Path, held: int) -> Made:
    manager = opened.enter_context(manager_of(folder / "in-file.db", held))
    return lambda: manager.allocate("one"), lambda: manager.release("one")


def set_and_loop(opened: ExitStack, folder: Path, held: int) -> Made:
    """Through the addresses one by one from where the last search ended, round and round."""
    first, size = int(FIRST), held + 2
    in_use = {first + i for i in range(held)}
    position = 0
    last = 0

    def acquire() -> None:
        nonlocal position, last
        for _ in range(size):
            number = first + position
            position = (position + 1) % size
            if number not in in_use:
                in_use.add(number)
                last = number
                return
        raise AssertionError("no address is left")

    return acquire, lambda: in_use.remove(last)


def ipalloc(opened: ExitStack, folder: Path, held: int) -> Made:
    """Its pool in memory, by its own rules."""
    store = opened.enter_context(import_module("ipalloc").Store.open("memory://"))
    pool = store.create_pool(name="bench", ranges=[f"{FIRST}-{last_of(held)}"])
    if held:
        pool.allocate_many([f"held-{i}" for i in range(held)])
    return lambda: pool.allocate("one"), lambda: pool.release("one")


PROGRAM = """
import sys
from netalloc import NetworkManager
with NetworkManager.open("br0", sys.argv[1]) as manager:
    manager.allocate("one")
"""


def our_process(opened: ExitStack, folder: Path, held: int) -> Made:
    """A Python process that opens the file, takes an address and ends."""
    store = folder / "process.db"
    manager_of(store, held).close()

    def take() -> None:
        subprocess.run([sys.executable, "-c", PROGRAM, str(store)], check=True)

    def release() -> None:
        with NetworkManager.open("br0", store) as manager:
            manager.release("one")

    return take, release


def host_local(opened: ExitStack, folder: Path, held: int) -> Made:
    """CNI's plugin: one process for each command, one file for each address."""
    network = folder / "cni" / "bench"
    network.mkdir(parents=True)
    for i in range(held):
        (network / str(FIRST + i)).write_text(f"held{i}\r\neth0")
    ranges = {
        "subnet": f"{FIRST - 2}/16",
        "rangeStart": str(FIRST),
        "rangeEnd": str(last_of(held)),
        "gateway": str(GATEWAY),
    }
    ipam = {"type": "host-local", "dataDir": str(network.parent), "ranges": [[ranges]]}
    config = {"cniVersion": "1.0.0", "name": "bench", "type": "bridge", "ipam": ipam}
    text = json.dumps(config).encode()
    common = {"CNI_CONTAINERID": "one", "CNI_NETNS": "/dev/null", "CNI_IFNAME": "eth0"}

    def run(command: str) -> Step:
        env = {**common, "CNI_COMMAND": command, "CNI_PATH": str(HOST_LOCAL.parent)}
        return lambda: subprocess.run(
            [HOST_LOCAL], input=text, env=env, check=True, capture_output=True
        )

    return run("ADD"), run("DEL")


CONTESTANTS = [
    Contestant("netalloc, in memory", False, in_memory),
    Contestant("netalloc, in a file", False, in_file),
    Contestant("a set and a loop", False, set_and_loop),
    Contestant(
        "ipalloc, in memory",
        False,
        ipalloc,
        None if find_spec("ipalloc") else "ipalloc is not installed",
    ),
    Contestant("netalloc, a Python process", True, our_process),
    Contestant(
        "CNI host-local, ADD",
        True,
        host_local,
        None if os.access(HOST_LOCAL, os.X_OK) else f"no {HOST_LOCAL}",
    ),
]


def seconds(made: Made) -> float:
    """For one address taken: the quickest of many pairs, of which one passes all that is held."""
    take, release = made
    best, end, pairs = float("inf"), perf_counter() + ENOUGH, 0
    while pairs < LEAST or (pairs < MOST and perf_counter() < end):
        spent = 0.0
        for _ in range(2):
            start = perf_counter()
            take()
            spent += perf_counter() - start
            release()
        best, pairs = min(best, spent / 2), pairs + 1
    return best


def measure() -> dict[str, dict[int, float]]:
    """Seconds by contestant and by how many are held; says how far it is."""
    found: dict[str, dict[int, float]] = {}
    for one in CONTESTANTS:
        if one.missing:
            sys.stderr.write(f"  left out: {one.name}: {one.missing}\n")
            continue
        sys.stderr.write(f"  {one.name} ...\n")
        for held in HELD:
            with TemporaryDirectory() as folder, ExitStack() as opened:
                made = one.make(opened, Path(folder), held)
                found.setdefault(one.name, {})[held] = seconds(made)
    return found

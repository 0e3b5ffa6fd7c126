"""A dense host: 10,000 interfaces with a published port each, and what every step costs.

    make density
    ARGS="--count 2000" make density

All of it happens in network and mount namespaces that end with this program.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from connects import CONNECTS, connecting, listening
from lab import Lab
from netalloc import NetworkManager
from netalloc.host import namespaces
from netalloc.host.links import Links, connect
from tables import markdown

BRIDGE_PORTS = 1_023
LINKS = 200  # made in earnest; more would take minutes
ALONE = 20  # containers that come and go one by one
SAMPLES = 5  # points at which one process per rule is timed, and processes at each
FIRST_PORT = 49_153

NFTABLES, NFT, LEGACY = "nftables", "iptables-nft", "iptables-legacy"
PROCESSES = "process per rule"
COLUMNS = (NFTABLES, NFT, LEGACY, PROCESSES)

SET_UP = "set up"
START = "{:,} interfaces, a port each"
ONE_MORE = "one more"
CHECK = "look whether all is right"
REPAIR = "somebody flushed: repair"
ONE_LESS = "one less"
END = "release all, clean up"
ONLY = "connect: the only mapping"
LAST = "connect: the last of {:,}"

Row = dict[str, str]


class Table:
    """What each step took, by column."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._cells: dict[str, Row] = {}

    def put(self, step: str, column: str, seconds: float, *, guess: bool = False) -> None:
        """A guess is marked as one."""
        row = self._cells.setdefault(step.format(self.count), {})
        row[column] = ("~ " if guess else "") + duration(seconds)

    @contextmanager
    def timed(self, step: str, column: str) -> Iterator[None]:
        start = perf_counter()
        yield
        self.put(step, column, perf_counter() - start)

    def lines(self) -> Iterator[str]:
        """The table, ready to print; columns as wide as they must be."""
        wide = max(map(len, self._cells))
        yield " " * wide + "".join(f"{column:>18}" for column in COLUMNS)
        for step, row in self._cells.items():
            cells = "".join(f"{row.get(column, '-'):>18}" for column in COLUMNS)
            yield f"{step:{wide}}{cells}"

    def markdown(self, steps: Sequence[str]) -> str:
        """Some of its rows, as the README has them."""
        wanted = [step.format(self.count) for step in steps]
        rows = [[self._cells[step].get(column, "") for column in COLUMNS] for step in wanted]
        named = [[step, *row] for step, row in zip(wanted, rows, strict=True)]
        return markdown([["", *COLUMNS], *named]).replace(" us ", " µs ")


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    for unit, size in (("min", 60), ("s", 1), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def connect_once(lab: Lab, port: int) -> float:
    """Median seconds for a new connection from outside through a published port."""
    with listening(lab) as server:
        return connecting(lab, server, port)


def fill(table: Table, column: str) -> None:
    """Everything netalloc does, over one backend."""
    variant = "legacy" if column == LEGACY else "nft"
    with Lab(variant, containers=1) as lab:
        # Elsewhere than the published ports, or netalloc would warn.
        Path("/proc/sys/net/ipv4/ip_local_port_range").write_text(f"32768 {FIRST_PORT - 1}")
        start = perf_counter()
        backend = column.partition("-")[0]
        manager = NetworkManager(lab.bridge, network=f"{lab.gateway}/16", backend=backend)
        table.put(SET_UP, column, perf_counter() - start)
        ours = manager.allocate(ip=lab.containers[0].ip)
        only = connect_once(lab, ours.allocate_port(80))
        with table.timed(START, column):
            manager.allocate_many(table.count - ALONE - 1, ports=(80,), owner="guests")
        start = perf_counter()
        guests = [manager.allocate(ports=(80,)) for _ in range(ALONE)]
        table.put(ONE_MORE, column, (perf_counter() - start) / ALONE)
        last = connect_once(lab, ours.allocate_port(80))
        start = perf_counter()
        for guest in guests:
            guest.release()
        table.put(ONE_LESS, column, (perf_counter() - start) / ALONE)
        with table.timed(CHECK, column):
            assert not manager.reconcile()
        flush(lab, column)
        with table.timed(REPAIR, column):
            assert manager.reconcile()
        with table.timed(END, column):
            manager.release("guests")
            ours.release()
            manager.close()
        table.put(ONLY, column, only)
        table.put(LAST, column, last)


def flush(lab: Lab, column: str) -> None:
    if column == LEGACY:
        lab.run("iptables", "-t", "nat", "-F")
    else:
        lab.run("nft", "flush", "ruleset")


def fill_processes(table: Table) -> None:
    """What others do: one process for each rule, in one chain. Sampled, the rest is guessed."""
    with Lab("legacy", containers=1) as lab:
        ip = lab.containers[0].ip

        def rule(action: str, port: int) -> list[str]:
            to = ["-j", "DNAT", "--to-destination", f"{ip}:80"]
            return [action, "PUBLISHED", "-p", "tcp", "--dport", str(port), *to]

        def each(action: str, ports: Sequence[int]) -> float:
            start = perf_counter()
            for port in ports:
                lab.run("iptables", "-w", "5", "-t", "nat", *rule(action, port))
            return (perf_counter() - start) / len(ports)

        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        lab.run("iptables", "-t", "nat", "-N", "PUBLISHED")
        lab.run("iptables", "-t", "nat", "-A", "PREROUTING", "-j", "PUBLISHED")
        add, remove, held = [], [], 0
        for sample in range(SAMPLES):
            wanted = table.count * sample // (SAMPLES - 1)
            text = "".join(" ".join(rule("-A", FIRST_PORT + n)) + "\n" for n in range(held, wanted))
            lab.run("iptables-restore", "--noflush", input=f"*nat\n{text}COMMIT\n")
            held = wanted
            extra = range(1024, 1024 + SAMPLES)
            add.append(each("-A", extra))
            remove.append(each("-D", extra))
            if sample == 0:
                lab.run("iptables", "-t", "nat", *rule("-A", 1))
                table.put(ONLY, PROCESSES, connect_once(lab, 1))
                lab.run("iptables", "-t", "nat", *rule("-D", 1))
        table.put(START, PROCESSES, mean(add) * table.count, guess=True)
        table.put(ONE_MORE, PROCESSES, add[-1])
        table.put(ONE_LESS, PROCESSES, remove[-1])
        table.put(END, PROCESSES, mean(remove) * table.count, guess=True)
        table.put(LAST, PROCESSES, connect_once(lab, FIRST_PORT + table.count - 1))


def mean(samples: Sequence[float]) -> float:
    """The mean of a line through samples at equal distances."""
    inner = samples[1:-1]
    return (samples[0] / 2 + sum(inner) + samples[-1] / 2) / (len(samples) - 1)


def link_seconds() -> float:
    """What a container's namespace costs: made, and put on the bridge with its address."""
    with Lab(containers=0) as lab, Links() as links:
        start = perf_counter()
        for n in range(LINKS):
            namespaces.create(f"n{n}")
            connect(
                links,
                f"v{n}",
                namespace=f"n{n}",
                bridge=lab.bridge,
                address=f"10.200.1.{n + 1}/16",
                gateway=lab.gateway,
            )
        return (perf_counter() - start) / LINKS


def show(progress: str, work: Callable[[], None]) -> None:
    sys.stderr.write(f"  {progress} ...\n")
    work()


def main() -> None:
    parser = argparse.ArgumentParser(description="What 10,000 published ports cost on one host.")
    parser.add_argument("--count", type=int, default=10_000, help="interfaces (up to 16,000)")
    parser.add_argument("--markdown", action="store_true", help="only the README's table")
    arguments = parser.parse_args()
    count = arguments.count
    if not 100 <= count <= 16_000:
        parser.error(f"--count {count} is not in 100 to 16,000")
    if os.geteuid() != 0:
        sys.exit("density: needs root, for network namespaces of its own: sudo make density")
    table = Table(count)
    for column in COLUMNS[:-1]:
        show(f"{count:,} mappings by {column}", lambda column=column: fill(table, column))
    show("one iptables process per rule", lambda: fill_processes(table))
    if arguments.markdown:
        sys.stdout.write(table.markdown((START, ONE_MORE, ONLY, LAST)))
        return
    link = link_seconds()
    bridges = -(-count // BRIDGE_PORTS)
    text = [
        *table.lines(),
        "",
        f"~ is guessed, from {SAMPLES} fillings of one chain with {SAMPLES} processes each",
        f"(iptables-legacy). One more and one less are means of {ALONE}, connects medians",
        f"of {CONNECTS}, each a new connection from outside the host.",
        "",
        "Not in the table are the containers' own namespaces and veth pairs, the same for all",
        f"columns: {LINKS} of them took {duration(link)} each, ~ {duration(link * count)} for all.",
        f"A bridge carries {BRIDGE_PORTS:,} ports at most: {count:,} containers need {bridges}",
        f"bridge{'s' * (bridges > 1)}, or routed pairs without one.",
    ]
    sys.stdout.write("".join(f"  {line}".rstrip() + "\n" for line in ("", *text, "")))


if __name__ == "__main__":
    main()

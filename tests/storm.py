"""Processes that allocate and release on one store while somebody kills them.

Each writes what it was given, and what it is about to give back, to a log of its own; the
logs together tell whether anything was ever held twice, or lost.
"""

import os
import random
import signal
import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from netalloc.manager.manager import NetworkManager

NETWORK = "10.0.0.1/20"


@dataclass
class Report:
    """What came of it."""

    operations: list[int]
    kills: int
    longest: float
    held: int
    in_doubt: int

    def __str__(self):
        return (
            f"{sum(self.operations)} operations by {len(self.operations)} processes "
            f"({min(self.operations)} to {max(self.operations)} each), {self.kills} kills, "
            f"longest wait {self.longest * 1e3:.0f} ms, {self.held} held at the end, "
            f"{self.in_doubt} taken but never acknowledged"
        )


def worker(path, number, log, operations, barrier):
    """Allocates and releases, at most 30 addresses at a time, and logs it."""
    rng = random.Random(os.getpid())
    os.read(barrier, 1)  # returns at once for everybody when the other end is closed
    with NetworkManager("br0", network=NETWORK, backend="null", store=path) as manager:
        held = manager.find(f"worker{number}")  # of the one who was killed
        for one in held:
            write(log, "adopt", one, 0.0)
        for _ in range(operations):
            begin = time.monotonic()
            if len(held) < 30 and (not held or rng.random() < 0.55):
                one = manager.allocate(f"worker{number}")
                held.append(one)
                write(log, "take", one, time.monotonic() - begin)
            else:
                one = held.pop(rng.randrange(len(held)))
                write(log, "give", one, 0.0)
                begin = time.monotonic()
                one.release(strict=True)
                write(log, "gave", one, time.monotonic() - begin)


def write(log, what, one, wait):
    line = f"{time.monotonic_ns()} {what} {int(one.ip)} {one.generation} {wait:.6f}"
    # Of a size by which no line is in two pages, between which a kill would divide it.
    os.write(log, f"{line:127}\n".encode())


def storm(folder, processes, operations, seconds, kill_every):
    """Run them; killed ones are started again. Returns a Report, or fails by assertion."""
    path = Path(folder) / "store.db"
    NetworkManager("br0", network=NETWORK, backend="null", store=path).close()
    logs = [
        os.open(Path(folder) / f"log{i}", os.O_RDWR | os.O_CREAT | os.O_APPEND)
        for i in range(processes)
    ]
    barrier, starter = os.pipe()
    children = {start(path, i, logs[i], operations, barrier, starter): i for i in range(processes)}
    os.close(starter)
    rng, kills, end = random.Random(3), 0, time.monotonic() + seconds
    done = set()
    try:
        while len(done) < processes and time.monotonic() < end:
            time.sleep(rng.uniform(0.5, 1.5) * kill_every)
            victim = rng.choice([pid for pid, i in children.items() if i not in done])
            os.kill(victim, signal.SIGKILL)
            for pid in list(children):
                gone, status = os.waitpid(pid, os.WNOHANG if pid != victim else 0)
                if not gone:
                    continue
                code = os.waitstatus_to_exitcode(status)
                assert code in (0, -signal.SIGKILL), f"worker {children[pid]} failed: {code}"
                number = children.pop(pid)
                if code == 0:
                    done.add(number)
                else:
                    kills += 1
                    left = operations - performed(logs[number])
                    children[start(path, number, logs[number], left, barrier, -1)] = number
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(barrier)
    report = judge(path, logs, kills)
    for log in logs:
        os.close(log)
    return report


def start(path, number, log, operations, barrier, starter):
    child = os.fork()
    if child:
        return child
    try:
        if starter >= 0:
            os.close(starter)
        worker(path, number, log, operations, barrier)
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)


def lines(log):
    size = os.fstat(log).st_size
    for line in os.pread(log, size, 0).decode().splitlines():
        when, what, ip, generation, wait = line.split()
        yield int(when), what, int(ip), int(generation), float(wait)


def performed(log):
    return sum(what in ("take", "gave") for _, what, *_ in lines(log))


def judge(path, logs, kills):
    """Nothing was held twice at any moment, and nothing is lost."""
    spans = defaultdict(dict)  # address -> generation -> [from, to]
    longest, operations, doubt = 0.0, [], 0
    for log in logs:
        count = 0
        for when, what, ip, generation, wait in lines(log):
            longest = max(longest, wait)
            count += what in ("take", "gave")
            doubt += what == "adopt" and generation not in spans[ip]
            if what in ("take", "adopt"):
                spans[ip].setdefault(generation, [when, None])
            elif what == "give":
                spans[ip][generation][1] = when
        operations.append(count)
    for ip, generations in spans.items():
        ordered = sorted(generations.values())
        for (_, end), (begin, _) in pairwise(ordered):
            assert end is not None and end < begin, f"{ip} was held twice"
        in_time = [g for g, span in sorted(generations.items(), key=lambda item: item[1][0])]
        assert sorted(generations) == in_time, f"generations of {ip} do not grow"
    with NetworkManager("br0", network=NETWORK, backend="null", store=path) as manager:
        assert manager.check() == []
        held = {(int(one.ip), one.generation) for one in manager.interfaces()}
        acknowledged = {
            (ip, generation)
            for ip, generations in spans.items()
            for generation, (_, end) in generations.items()
            if end is None
        }
        assert acknowledged <= held, f"lost: {acknowledged - held}"
        # The rest was taken, or was about to be given back, at the moment of a kill.
        rest = held - acknowledged
        assert len(rest) <= kills + len(logs)
        for one in manager.interfaces():
            assert one.owner.startswith("worker")
        free = manager.subnet.capacity - len(held)
        assert len(manager.allocate_many(free)) == free
    return Report(operations, kills, longest, len(held), doubt + len(rest))

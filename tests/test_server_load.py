"""The daemon under load: 32 clients on each socket, no address twice, memory flat."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from command_line import CommandLine
from daemon import Daemon

CLIENTS, PROCESSES = 32, 4

# Of one process: threads that allocate, look and release, and how long each call took.
CLIENT = """
import json, sys, threading, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from daemon import LineClient, UnixConnection
how, path, first, threads, seconds = {arguments}
took, held, lock, wrong = [], {{}}, threading.Lock(), []

def client(number):
    mine = []
    connection = UnixConnection(Path(path)) if how == "http" else LineClient(Path(path))
    def call(name, **given):
        begun = time.perf_counter()
        if how == "line":
            outcome, answer = connection.call(name, **given)
        else:
            status, answer = connection.call("POST", "/v1/" + name, given)
            outcome = "ok" if status == 200 else "error"
        mine.append(time.perf_counter() - begun)
        if outcome != "ok":
            wrong.append(str(answer))
        return answer
    end, turn, have = time.monotonic() + seconds, 0, []
    while (time.monotonic() < end or have) and not wrong:
        if time.monotonic() < end:
            owner = f"c{{number}}-{{turn}}"
            answer = call("allocate", owner=owner)
            with lock:
                if answer["ip"] in held:
                    wrong.append("twice: " + answer["ip"])
                held[answer["ip"]] = owner
            have.append((owner, answer["ip"]))
            turn += 1
        if len(have) > 5 or time.monotonic() >= end:
            owner, ip = have.pop(0)
            with lock:  # before it is given back, for another may get it at once
                held.pop(ip, None)
            call("release", owner=owner)
    connection.close()
    with lock:
        took.extend(mine)

all_threads = [threading.Thread(target=client, args=(first + i,)) for i in range(threads)]
for one in all_threads: one.start()
for one in all_threads: one.join()
print(json.dumps([took, wrong]))
"""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    na = CommandLine(tmp_path / "host.db")
    na.well("network", "create", "web", "10.88.0.1/16", "--backend", "null")
    with Daemon(tmp_path, "--log-level", "warning") as daemon:
        yield daemon


@pytest.mark.parametrize("how", ["http", "line"])
@pytest.mark.parametrize("seconds", [2, pytest.param(60, marks=pytest.mark.soak)])
def test_no_address_is_given_twice_and_memory_stays(daemon: Daemon, how: str, seconds: int) -> None:
    path = str(daemon.api if how == "http" else daemon.line)

    def run(seconds: float) -> list[float]:
        processes = []
        for number in range(PROCESSES):
            each = CLIENTS // PROCESSES
            arguments = (how, path, number * each, each, seconds)
            code = CLIENT.format(tests=str(Path(__file__).parent), arguments=arguments)
            processes.append(
                subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
            )
        took: list[float] = []
        for one in processes:
            out, _ = one.communicate(timeout=seconds + 60)
            mine, wrong = json.loads(out)
            assert wrong == []
            took += mine
        return took

    run(min(10.0, seconds / 2))  # what it keeps in any case is kept by then
    before, begun = daemon.memory(), time.monotonic()
    took = sorted(run(seconds))
    grown = daemon.memory() - before
    p50, p99 = statistics.median(took), took[int(len(took) * 0.99)]
    sys.stdout.write(
        f"\n{how}: {len(took) / (time.monotonic() - begun):,.0f} calls/s, p50 {p50 * 1e3:.2f} ms, "
        f"p99 {p99 * 1e3:.2f} ms, memory {before >> 20} MiB and {grown >> 10:+,} KiB\n"
    )
    assert grown < 8 << 20
    assert daemon.get("leases") == (200, [])
    assert daemon.get("check")[1]["findings"] == []
    generations = int(daemon.get("activity")[1]["allocated"])
    assert generations >= len(took) // 2

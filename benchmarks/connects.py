"""New connections from outside a host through a published port, timed."""

from collections.abc import Iterator
from contextlib import contextmanager
from socket import socket
from statistics import median
from time import perf_counter

from lab import Lab

CONNECTS = 100
_PATIENCE = 5  # seconds


@contextmanager
def listening(lab: Lab) -> Iterator[socket]:
    """A socket at port 80 of the first container. No thread of ours accepts: the kernel answers."""
    container = lab.containers[0]
    with lab.socket(container, "tcp") as server:
        server.bind((container.ip, 80))
        server.listen(CONNECTS)
        server.settimeout(_PATIENCE)
        yield server


def connecting(lab: Lab, server: socket, port: int) -> float:
    """Median seconds for a new connection to a published port; the server accepts them behind."""
    clients = [lab.socket(lab.outside, "tcp") for _ in range(CONNECTS)]
    seconds = []
    for client in clients:
        client.settimeout(_PATIENCE)
        start = perf_counter()
        client.connect((lab.address, port))
        seconds.append(perf_counter() - start)
    for client in clients:
        client.close()
        server.accept()[0].close()
    return median(seconds)

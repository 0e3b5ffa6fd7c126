"""What systemd is told, and the sockets it hands over (sd_notify(3), sd_listen_fds(3))."""

from __future__ import annotations

import os
import socket

_FIRST = 3  # SD_LISTEN_FDS_START


def notify(state: str) -> None:
    """Tell the service manager, if there is one: READY=1, STOPPING=1, WATCHDOG=1."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as one:
        try:
            one.connect(address)
            one.sendall(state.encode())
        except OSError:
            pass  # there is no service manager to tell


def watchdog_interval() -> float | None:
    """Seconds between two signs of life: half of what systemd waits; None where it does not."""
    usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID")
    if not usec.isdigit() or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 2e6


def inherited() -> dict[str, socket.socket]:
    """The listening sockets that systemd made, by their names in the .socket unit."""
    if os.environ.pop("LISTEN_PID", None) != str(os.getpid()):
        return {}
    count = int(os.environ.pop("LISTEN_FDS", "0"))
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    found = {}
    for number in range(count):
        os.set_inheritable(_FIRST + number, False)
        name = names[number] if number < len(names) and names[number] else str(number)
        found[name] = socket.socket(fileno=_FIRST + number)
    return found

"""A container that tries to reach the host's 127.0.0.1 all the time, with frames of its own.

Run as `python hostile.py INTERFACE HOST_MAC SECONDS` inside of its namespace: it writes raw
frames, so that no rule or route of the container is in the way, and prints how many it sent.
"""

import socket
import struct
import sys
import time
from contextlib import suppress

PORT = 9999


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def packet(source, destination, protocol, payload):
    head = struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0,
        socket.inet_aton(source), socket.inet_aton(destination),
    )  # fmt: skip
    head = head[:10] + struct.pack(">H", checksum(head)) + head[12:]
    return head + payload


def transport(source, destination, protocol):
    if protocol == 17:
        return struct.pack(">HHHH", 4000, PORT, 8 + 7, 0) + b"hostile"  # checksum 0 is none
    body = struct.pack(">HHIIBBHHH", 4000, PORT, 1, 0, 0x50, 2, 1024, 0, 0)
    pseudo = socket.inet_aton(source) + socket.inet_aton(destination)
    pseudo += struct.pack(">BBH", 0, 6, len(body))
    return body[:16] + struct.pack(">H", checksum(pseudo + body)) + body[18:]


def frames(mine, host, own):
    """Every way in: as another, as the host itself, with one tag and with two."""
    for source, destination in (
        (own, "127.0.0.1"),
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.2", "10.200.0.1"),
        ("10.9.9.9", "127.5.5.5"),
    ):
        for protocol in (6, 17):
            ip = packet(source, destination, protocol, transport(source, destination, protocol))
            for tags in (b"", b"\x81\0\0\0", b"\x81\0\0\0" * 2, b"\x88\xa8\0\0\x81\0\0\0"):
                yield host + mine + tags + b"\x08\0" + ip


def main():
    interface, host, own, seconds = sys.argv[1:5]
    link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    link.bind((interface, 0))
    mine = link.getsockname()[4]
    every = list(frames(mine, bytes.fromhex(host.replace(":", "")), own))
    sent, end = 0, time.monotonic() + float(seconds)
    print("ready", flush=True)  # noqa: T201
    while time.monotonic() < end:
        for frame in every:
            with suppress(OSError):  # its queue is full
                sent += link.send(frame) > 0
        time.sleep(0.0005)
    print(sent, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()

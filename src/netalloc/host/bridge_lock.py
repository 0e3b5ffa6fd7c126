"""A claim to a bridge that ends with its process: a name that the kernel takes back itself."""

import errno
import os
import socket
import struct

from netalloc.errors import InUseError


def claim(bridge: str) -> socket.socket:
    """Be the only one of this network namespace to manage a bridge, until the socket is closed.

    The name is an abstract unix socket's (unix(7)), which belongs to the network namespace.
    Anybody may take one, so a claim counts only from the same user or root. Raises InUseError,
    which names the process.
    """
    name = f"\0netalloc/{bridge}"
    claimed = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        claimed.bind(name)
        claimed.listen()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            claimed.close()
            raise
        pid, uid, _ = struct.unpack("3i", _credentials(claimed, name))
        if uid in (0, os.geteuid()):
            claimed.close()
            holder = f"process {pid}" if pid else "another process"
            raise InUseError(
                f"bridge {bridge} is managed by {holder}, in memory: two managers of a bridge "
                f"need a store to share",
                holder,
            ) from None
    return claimed


def _credentials(client: socket.socket, name: str) -> bytes:
    """Who listens there: pid, uid and gid, zero when he has just left."""
    try:
        client.connect(name)
    except ConnectionRefusedError:
        return bytes(12)
    return client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)

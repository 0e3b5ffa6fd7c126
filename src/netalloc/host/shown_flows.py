"""The flows of a host as /proc shows them: half a millisecond where there are few.

A listing over netlink locks each of the kernel's 262,144 buckets, 8 ms with or without flows,
and a deletion by filter passes them all, 0.4 ms; here they are passed once. But each flow is
written out as text, 3 µs, and not every kernel shows them (CONFIG_NF_CONNTRACK_PROCFS).
"""

import re
from socket import inet_pton
from typing import NamedTuple

from netalloc.family import FAMILIES, V4, Family
from netalloc.host import netns

_PATH = "/proc/thread-self/net/nf_conntrack"
# Each flow as it was sent, and as it is answered; by the version of IP.
_FLOW = {
    family.version: re.compile(
        rf"^ipv{family.version} +{family.af} +\S+ +(\d+) .*?dst=(\S+) sport=\d+ dport=(\d+) "
        r".*?src=(\S+) ",
        re.MULTILINE,
    )
    for family in FAMILIES
}


class ShownFlow(NamedTuple):
    """What a flow was sent to, by protocol number, packed address and port, and who answers."""

    number: int
    ip: bytes
    port: int
    server: bytes


def shown_flows(home: netns.NamespaceId, family: Family = V4) -> list[ShownFlow] | None:
    """The flows of a family that have ports. O(flows).

    None where they are not shown, or the thread is in another network namespace than `home`.
    """
    if netns.current() != home:
        return None
    try:
        with open(_PATH, encoding="ascii", errors="replace") as file:  # noqa: PTH123
            text = file.read()
    except OSError:
        return None
    return [
        ShownFlow(int(number), inet_pton(family.af, ip), int(port), inet_pton(family.af, server))
        for number, ip, port, server in _FLOW[family.version].findall(text)
    ]

"""What the doors print: plain values alone, so that each becomes JSON field by field.

Addresses are text, moments are ISO 8601 in UTC, durations are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Network:
    """A network: how it is configured, and how much of it is in use.

    `free`, `cooling` and `reserved` are counted each by itself: an address may be reserved and
    held. `bridge_ports` and `bridge_ports_limit` are None without a bridge on this machine.
    """

    name: str
    mode: str
    bridge: str | None
    subnets: list[str]
    backend: str
    host_ports: str
    exclude: list[str]
    cooldown: float
    sticky: float
    forward: bool
    isolation: str
    services: list[str]
    capacity: int
    held: int
    free: int
    cooling: int
    reserved: int
    published: int
    bridge_ports: int | None = None
    bridge_ports_limit: int | None = None


@dataclass(frozen=True)
class Port:
    """Host ports from `host_port` on, `count` of them, that lead to a container.

    `host_ip` None is every address of the host in the family of `container_ip`.
    """

    host_ip: str | None
    host_port: int
    count: int
    protocol: str
    container_ip: str
    container_port: int


@dataclass(frozen=True)
class Attachment:
    """What a lease is on the machine: `kind` is "veth" or "tap", `interface` the host's end.

    `ifname` is what it is called in the container; None of a tap, as `netns` is, which is the
    identity of the network namespace (its device and inode). `made` False: a kill came between.
    """

    kind: str
    interface: str
    netns: str | None
    ifname: str | None
    mac: str
    mtu: int
    made: bool


@dataclass(frozen=True)
class Lease:
    """An address that is held, of each family that its network has."""

    network: str
    owner: str | None
    key: str | None
    generation: int
    ip: str
    addresses: list[str]
    gateways: list[str]
    since: str
    labels: dict[str, str]
    ports: list[Port]
    attachment: Attachment | None


@dataclass(frozen=True)
class Past:
    """A lease of an address: until `end`, or still where that is None."""

    network: str
    ip: str
    owner: str | None
    key: str | None
    start: str
    end: str | None


@dataclass(frozen=True)
class Reservation:
    """An address that is kept for an owner, or from everyone where that is None."""

    network: str
    ip: str
    owner: str | None
    since: str


@dataclass(frozen=True)
class Owner:
    """How much an owner holds: addresses, and ports that are published."""

    owner: str
    held: int
    ports: int


@dataclass(frozen=True)
class Activity:
    """How busy a host is: leases ever given and ended, networks, and the owners that hold most."""

    allocated: int
    released: int
    networks: list[Network]
    busiest: list[Owner]


@dataclass(frozen=True)
class Who:
    """What holds an address, a host port or what an owner holds.

    `kernel` says of a port whether the kernel leads there: "agrees", a difference in words, or
    None where that was not asked for, or cannot be seen without privilege. `before` is the last
    lease that ended, `note` what there is to say besides.
    """

    asked: str
    kind: str
    leases: list[Lease]
    before: Past | None = None
    kernel: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class Why:
    """Whether an address or a host port can be had now, or what of an owner, and why not."""

    asked: str
    kind: str
    free: bool
    reason: str


@dataclass(frozen=True)
class Released:
    """The addresses that were given back."""

    owner: str
    addresses: list[str]


@dataclass(frozen=True)
class Collected:
    """What was given back because its owner was not alive, by network."""

    addresses: dict[str, list[str]]


@dataclass(frozen=True)
class Findings:
    """What a check found: nothing where all is well."""

    findings: list[str]
    compared: bool = True  # with the kernel


@dataclass(frozen=True)
class Done:
    """What was done, a line each."""

    done: list[str]


@dataclass(frozen=True)
class Planned:
    """What a dry run found would happen; nothing was touched."""

    would: list[str]
    answer: Any = None


@dataclass(frozen=True)
class Finding:
    """One limit of the host, or one thing that stands in the way.

    `status` is "ok", "warning", "critical" or "unknown". `room` is for how many more containers it
    suffices. `fix` is the command that raises or removes it, or what to do.
    """

    name: str
    status: str
    now: int | None
    limit: int | None
    room: int | None
    text: str
    fix: str | None = None


@dataclass(frozen=True)
class Health:
    """What the doctor found: `status` is the worst of the findings'."""

    status: str
    findings: list[Finding] = field(default_factory=list)

"""What the growth gate times: each operation of the public API, as turns on a place."""

from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from ipaddress import IPv4Address
from typing import Any

from gate import Timed
from growth import FREE, FREE_PORT, KEPT, PAST, Place, refused, release_all, turn
from netalloc import (
    ExhaustedError,
    InUseError,
    NetallocError,
    NetworkInterface,
    NotAllocatedError,
    OutOfRangeError,
    PortRequest,
)

Operation = Callable[[Place], Timed]
ADDRESSES = [str(IPv4Address(FREE) + i) for i in range(100)]
HOST_IP = "192.0.2.7"
SINCE = datetime(2020, 1, 1, tzinfo=timezone.utc)
MANY = 1 << 24  # more than any network of the gate has


# ---- what gives and takes


def allocating(ip: bool = False, **arguments: Any) -> Operation:
    """allocate() for the place's owner unless told otherwise; `ip`: addresses by their name."""

    def operation(at: Place) -> Timed:
        allocate, options = at.manager.allocate, {"owner": at.owner, **arguments}

        def work(i: int) -> NetworkInterface:
            return allocate(ip=ADDRESSES[i] if ip else None, **options)

        return turn(at.calls, work, after=release_all)

    return operation


def allocating_known(at: Place) -> Timed:
    allocate = at.manager.allocate
    allocate(at.owner, key="known")
    return turn(at.calls, lambda _: allocate(at.owner, key="known"))


def allocating_new_keys(at: Place) -> Timed:
    allocate = at.manager.allocate
    return turn(at.calls, lambda i: allocate(at.owner, key=f"new-{i}"), after=release_all)


def allocating_host_ports(at: Place) -> Timed:
    requests = [[PortRequest(80, host_port=FREE_PORT + i)] for i in range(at.calls)]
    return turn(at.calls, lambda i: at.manager.allocate(ports=requests[i]), after=release_all)


def allocating_the_reserved(at: Place) -> Timed:
    def after(interfaces: list[NetworkInterface]) -> None:
        assert str(interfaces[0].ip) == KEPT
        release_all(interfaces)

    return turn(1, lambda _: at.manager.allocate("dns"), after=after)


def allocating_many(*ports: int) -> Operation:
    def operation(at: Place) -> Timed:
        def after(_: object) -> None:
            at.manager.release("many")

        return turn(1, lambda _: at.manager.allocate_many(100, ports, "many"), after=after)

    return operation


def releasing(**arguments: Any) -> Operation:
    """The end of leases that were made with these arguments."""

    def operation(at: Place) -> Timed:
        def before(n: int) -> list[NetworkInterface]:
            return [at.manager.allocate(at.owner, **arguments) for _ in range(n)]

        return turn(at.calls, NetworkInterface.release, before)

    return operation


def releasing_late(at: Place) -> Timed:
    def before(n: int) -> list[NetworkInterface]:
        leases = [at.manager.allocate("late", key=f"{i}") for i in range(n)]
        again = [at.manager.allocate("late", key=f"{i}") for i in range(n)]
        release_all(leases)
        return again

    return turn(at.calls, NetworkInterface.release, before)


def releasing_owners(at: Place) -> Timed:
    def before(n: int) -> list[str]:
        for i in range(n):
            at.manager.allocate_many(2, (80,), f"leaving-{i}")
        return [f"leaving-{i}" for i in range(n)]

    return turn(at.calls, at.manager.release, before)


def reserving(at: Place) -> Timed:
    def after(_: object) -> None:
        for ip in ADDRESSES[: at.calls]:
            at.manager.unreserve(ip)

    return turn(at.calls, lambda i: at.manager.reserve(ADDRESSES[i], at.owner), after=after)


def unreserving(at: Place) -> Timed:
    def before(n: int) -> list[str]:
        for ip in ADDRESSES[:n]:
            at.manager.reserve(ip, at.owner)
        return ADDRESSES[:n]

    return turn(at.calls, at.manager.unreserve, before)


# ---- ports of one interface


def publishing(*requests: PortRequest) -> Operation:
    def operation(at: Place) -> Timed:
        one = at.manager.allocate(at.owner)

        def after(published: list[Any]) -> None:
            for mapping in [mapping for some in published for mapping in some]:
                one.release_port(mapping.host_port, mapping.protocol, mapping.host_ip)

        return turn(at.calls, lambda _: one.publish(requests), after=after)

    return operation


def publishing_host_ports(at: Place) -> Timed:
    one = at.manager.allocate(at.owner)

    def after(ports: list[int]) -> None:
        for port in ports:
            one.release_port(port)

    def work(i: int) -> int:
        return one.allocate_port(80, host_port=FREE_PORT + i)

    return turn(at.calls, work, after=after)


def unpublishing(request: PortRequest) -> Operation:
    def operation(at: Place) -> Timed:
        one = at.manager.allocate(at.owner)

        def before(n: int) -> list[Any]:
            return [one.publish([request])[0] for _ in range(n)]

        def work(mapping: Any) -> None:
            one.release_port(mapping.host_port, mapping.protocol, mapping.host_ip)

        return turn(at.calls, work, before)

    return operation


# ---- looking


def asking(ask: Callable[[Place], Callable[[], object]]) -> Operation:
    """A question that changes nothing and has an answer."""

    def operation(at: Place) -> Timed:
        question = ask(at)
        assert question()
        return turn(4 * at.calls, lambda _: question())

    return operation


def asking_an_interface(ask: Callable[[NetworkInterface], object]) -> Operation:
    def operation(at: Place) -> Timed:
        def before(n: int) -> Iterable[NetworkInterface]:
            return [at.manager.find("found")[0] for _ in range(n)]

        return turn(at.calls, ask, before)

    return operation


def viewing(ask: Callable[[Any, Place], object]) -> Operation:
    """A question to a view of the file."""

    def operation(at: Place) -> Timed:
        view = at.view()
        assert ask(view, at)
        return turn(at.calls, lambda _: ask(view, at))

    return operation


# ---- refusals


def refusing(error: type[NetallocError], ask: Callable[[Place], Callable[[], object]]) -> Operation:
    def operation(at: Place) -> Timed:
        return turn(at.calls, refused(error, ask(at)))

    return operation


def _publish_taken(at: Place) -> Callable[[], object]:
    one = at.manager.allocate(at.owner)
    return lambda: one.allocate_port(80, host_port=at.taken_port)


def _taken(at: Place) -> str:
    return str(at.found[-1].ip)


CHANGES: dict[str, Operation] = {
    "allocate": allocating(owner=None),
    "allocate for an owner": allocating(),
    "allocate with a known key": allocating_known,
    "allocate with a new key": allocating_new_keys,
    "allocate with labels": allocating(labels={"app": "shop", "tier": "1"}),
    "allocate an address": allocating(ip=True),
    "allocate a reserved address": allocating_the_reserved,
    "allocate with a port": allocating(ports=(80,)),
    "allocate with 4 ports": allocating(ports=(80, 81, 82, 83)),
    "allocate with a host port": allocating_host_ports,
    "allocate_many(100)": allocating_many(),
    "allocate_many(100) with a port each": allocating_many(80),
    "release": releasing(),
    "release with labels": releasing(labels={"app": "shop", "tier": "1"}),
    "release with a port": releasing(ports=(80,)),
    "release with 4 ports": releasing(ports=(80, 81, 82, 83)),
    "release of an owner": releasing_owners,
    "release that comes late": releasing_late,
    "reserve": reserving,
    "unreserve": unreserving,
    "allocate_port": publishing(PortRequest(80)),
    "allocate_port udp": publishing(PortRequest(53, "udp")),
    "allocate_port, a host port": publishing_host_ports,
    "allocate_port on one address": publishing(PortRequest(80, host_ip=HOST_IP)),
    "allocate_ports(10)": publishing(PortRequest(None, count=10)),
    "publish 4": publishing(*map(PortRequest, (80, 81, 82, 83))),
    "release_port": unpublishing(PortRequest(80)),
    "release_port on one address": unpublishing(PortRequest(80, host_ip=HOST_IP)),
    "release_port of 10": unpublishing(PortRequest(None, count=10)),
}

LOOKS: dict[str, Operation] = {
    "find(owner)": asking(lambda at: lambda: at.manager.find("found")),
    "find(label)": asking(lambda at: lambda: at.manager.find(label="app=found")),
    "find(owner, label)": asking(lambda at: lambda: at.manager.find("found", "app=found")),
    "history": asking(lambda at: lambda: at.manager.history(PAST)),
    "history at a moment": asking(lambda at: lambda: [at.manager.history(PAST, SINCE)]),
    "labels": asking_an_interface(lambda one: one.labels),
    "ports()": asking_an_interface(NetworkInterface.ports),
}

REFUSALS: dict[str, Operation] = {
    "refused: a taken address": refusing(
        InUseError, lambda at: lambda: at.manager.allocate(ip=_taken(at))
    ),
    "refused: a reserved address": refusing(
        InUseError, lambda at: lambda: at.manager.allocate("web", KEPT)
    ),
    "refused: a taken host port": refusing(InUseError, _publish_taken),
    "refused: allocate with a taken host port": refusing(
        InUseError,
        lambda at: lambda: at.manager.allocate(ports=[PortRequest(80, host_port=at.taken_port)]),
    ),
    "refused: a known key, another address": refusing(
        InUseError, lambda at: lambda: at.manager.allocate("db", FREE, key="eth0")
    ),
    "refused: a known key, other ports": refusing(
        InUseError, lambda at: lambda: at.manager.allocate("db", key="eth0", ports=(81,))
    ),
    "refused: a known key, other labels": refusing(
        InUseError, lambda at: lambda: at.manager.allocate("db", key="eth0", labels={"a": "b"})
    ),
    "refused: out of range": refusing(
        OutOfRangeError, lambda at: lambda: at.manager.allocate(ip="192.0.2.1")
    ),
    "refused: the gateway": refusing(
        OutOfRangeError, lambda at: lambda: at.manager.allocate(ip="10.0.0.1")
    ),
    "refused: more than are free": refusing(
        ExhaustedError, lambda at: lambda: at.manager.allocate_many(MANY)
    ),
    "refused: reserve a taken address": refusing(
        InUseError, lambda at: lambda: at.manager.reserve(_taken(at), "web")
    ),
    "refused: unreserve what is not": refusing(
        NotAllocatedError, lambda at: lambda: at.manager.unreserve(FREE)
    ),
}

VIEWS: dict[str, Operation] = {
    "view: find(owner)": viewing(lambda view, at: view.find("found")),
    "view: find(label)": viewing(lambda view, at: view.find(label="app=found")),
    "view: who(address)": viewing(lambda view, at: view.who(_taken(at))),
    "view: who(port)": viewing(lambda view, at: view.who(f"tcp/{at.taken_port}")),
    "view: why(taken address)": viewing(lambda view, at: view.why(_taken(at))),
    "view: why(reserved address)": viewing(lambda view, at: view.why(KEPT)),
    "view: why(free address)": viewing(lambda view, at: view.why(FREE)),
    "view: why(port)": viewing(lambda view, at: view.why(f"tcp/{at.taken_port}")),
    "view: why(free port)": viewing(lambda view, at: view.why("tcp/1")),
    "view: history": viewing(lambda view, at: view.history(PAST)),
    "view: networks()": viewing(lambda view, at: view.networks()),
}

ALL = {**CHANGES, **LOOKS, **REFUSALS}

"""What the growth gate times at the edges: nothing left, a cold file, many networks."""

from collections.abc import Callable
from pathlib import Path

from gate import Timed
from growth import Place, turn
from growth_operations import Operation, allocating, refusing, viewing
from netalloc import ExhaustedError, NetworkManager, Networks, NetworkView

# ---- where nothing is left


def taking_the_only(at: Place) -> Timed:
    """The only free address of a network, released behind the clock."""
    last = [at.found[0]]

    def before(n: int) -> range:
        last.pop().release()
        return range(n)

    return turn(1, lambda _: at.manager.allocate("all"), before, last.extend)


def taking_the_only_port(at: Place) -> Timed:
    (one,) = at.found
    last = [one.ports()[7].host_port]

    def before(n: int) -> range:
        one.release_port(last.pop())
        return range(n)

    return turn(1, lambda _: one.allocate_port(80), before, last.extend)


def releasing_one_of_all(at: Place) -> Timed:
    """One of the ports of an interface that publishes them all."""
    (one,) = at.found
    last = [one.ports()[7].host_port]

    def after(_: object) -> None:
        last.append(one.allocate_port(80))

    return turn(1, lambda _: one.release_port(last.pop()), after=after)


def taking_the_only_gap(at: Place) -> Timed:
    one = at.manager.allocate()

    def after(ports: list[range]) -> None:
        one.release_port(ports[0][0])

    return turn(1, lambda _: one.allocate_ports(10), after=after)


def _no_gap(at: Place) -> Callable[[], object]:
    one = at.manager.allocate()
    return lambda: one.allocate_ports(20)


NOTHING_LEFT: dict[str, Operation] = {
    "refused: no address is left": refusing(ExhaustedError, lambda at: at.manager.allocate),
    "refused: no two addresses are left": refusing(
        ExhaustedError, lambda at: lambda: at.manager.allocate_many(2)
    ),
    "allocate the only free address": taking_the_only,
}

ALL_COOLING: dict[str, Operation] = {
    "refused: all addresses cool down": refusing(ExhaustedError, lambda at: at.manager.allocate),
    "allocate what has cooled longest": allocating(allow_cooling=True),
}

NO_PORT_LEFT: dict[str, Operation] = {
    "refused: no port is left": refusing(
        ExhaustedError, lambda at: lambda: at.found[0].allocate_port(80)
    ),
    "refused: allocate without a port left": refusing(
        ExhaustedError, lambda at: lambda: at.found[0].allocate_ports(2)
    ),
    "allocate_port, the only free one": taking_the_only_port,
    "release_port of an interface that has all": releasing_one_of_all,
}

NO_GAP: dict[str, Operation] = {
    "allocate_ports(10), the only gap": taking_the_only_gap,
    "refused: no 20 adjacent ports": refusing(ExhaustedError, _no_gap),
}

# ---- files that nothing has open


def opening(use: Callable[[Path], object]) -> Operation:
    def operation(at: Place) -> Timed:
        path = at.path
        assert path is not None
        return turn(2, lambda _: use(path))

    return operation


def _open(path: Path) -> None:
    NetworkManager.open("br0", path).close()


def _open_and_allocate(path: Path) -> None:
    with NetworkManager.open("br0", path) as manager, manager.allocate("cold", ports=(80,)):
        pass


def _open_view(path: Path) -> None:
    with NetworkView(path) as view:
        assert len(view.find("found", network="br0")) == 3


def _open_networks(path: Path) -> None:
    with Networks(path) as host:
        assert host["br0"].name == "br0"
        assert "br0" in host
        host.open("br0").allocate("cold").release()


COLD: dict[str, Operation] = {
    "open and close": opening(_open),
    "open, allocate with a port, release, close": opening(_open_and_allocate),
    "open a view and ask": opening(_open_view),
    "open all networks, allocate of one": opening(_open_networks),
}


# ---- many networks in one store


def among_networks(work: Callable[[Networks], object]) -> Operation:
    def operation(at: Place) -> Timed:
        assert at.path is not None
        host = at.opened.enter_context(Networks(at.path))
        return turn(at.calls, lambda _: work(host))

    return operation


def _one_more(host: Networks) -> None:
    host.create("extra", "12.0.0.1/16", bridge="extra", backend="null")
    host.remove("extra")


NETWORKS: dict[str, Operation] = {
    "Networks[name]": among_networks(lambda host: host["br0"]),
    "name in Networks": among_networks(lambda host: "br0" in host),
    "Networks.open": among_networks(lambda host: host.open("br0")),
    "Networks.create and remove": among_networks(_one_more),
    "view: find(owner, network)": viewing(lambda view, at: view.find("found", network="br0")),
}

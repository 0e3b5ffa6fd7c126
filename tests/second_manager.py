"""A manager beside another one: what a process of its own runs, so it imports little."""

from netalloc import InUseError, NetworkManager

BRIDGES = {"br0": "10.200.0.1/16", "br1": "10.201.0.1/16"}


def use(store, bridge, backend):
    """Open a manager and take two addresses with a port each; (manager, what it holds)."""
    manager = NetworkManager(
        bridge, network=BRIDGES[bridge], backend=backend, store=store, ports=range(8000, 8100)
    )
    try:
        return manager, taken(manager)
    except BaseException:
        manager.close()
        raise


def taken(manager):
    found = []
    for _ in range(2):
        one = manager.allocate("x")
        found.append((str(one.ip), one.allocate_port(80)))
    return found


def outcome(store, bridge, backend):
    """What a second manager gets, as JSON can hold it; a refusal is its text."""
    try:
        manager, found = use(store, bridge, backend)
    except InUseError as error:
        return str(error)
    manager.close()
    return [list(pair) for pair in found]

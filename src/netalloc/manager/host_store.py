"""The one store that whatever touches the kernel of a network namespace shares.

Two stores that give out the ports and mappings of one host would give them twice. So a manager
with a real backend claims its network namespace for its store: more of the same store are let
in, in whatever process; another store is refused and told which one is there. The managers in
memory of one process share one memory store for each namespace.
"""

from __future__ import annotations

import os
from _thread import allocate_lock as Lock

from netalloc.errors import InvalidValueError
from netalloc.light import loaded
from netalloc.locks import holding
from netalloc.manager.undo import Teardown
from netalloc.values import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from netalloc.host.owed_flows import OwedFlows
    from netalloc.store.memory import MemoryStore
    from netalloc.store.protocol import Store, Transaction
    from netalloc.store.sqlite.store import SqliteStore


class HostStore:
    """A store, the claim of the namespace for it, and what gives both back.

    `is_last` says, at its closing, whether no other manager of this process shares a store in
    memory: then nothing in it needs to be taken back.
    """

    def __init__(self, store: Store, *, owned: bool) -> None:
        self.store = store
        self.shared = False
        self.owed: OwedFlows | None = None  # with a backend that touches the kernel
        self._teardown = Teardown()
        if owned:
            self._teardown.push(store.close)

    def close(self) -> None:
        """Give back the claim, and the store where it was opened for this; twice is no error.

        What was interrupted, or did not come in time, is done by the next call.
        """
        self._teardown.close()

    def claim(self, network: str) -> None:
        """Claim the caller's network namespace for this store: InUseError for a second truth."""
        from netalloc.host.namespace_lock import claim
        from netalloc.host.owed_flows import OwedFlows

        held = claim(_truth(self.store), network)
        self._teardown.push(held.close)
        owed = self.owed = OwedFlows()
        self._teardown.push(owed.close)


_shared: dict[tuple[int, int], tuple[MemoryStore, set[object]]] = {}
_shared_lock = Lock()


def open_store(store: object) -> HostStore:
    """The store that a caller names: a path, or the part itself."""
    if isinstance(store, str | os.PathLike | bytes):
        kind = loaded(_sqlite_store)
        return HostStore(kind(store, **callbacks()), owned=True)  # type: ignore[arg-type]
    for method in ("begin", "read", "close"):
        if not callable(getattr(store, method, None)):
            raise InvalidValueError(f"store {shown(store)} is neither a path nor a store")
    return HostStore(store, owned=False)  # type: ignore[arg-type]


def _sqlite_store() -> type[SqliteStore]:
    from netalloc.store.sqlite.store import SqliteStore

    return SqliteStore


def callbacks() -> dict[str, Any]:
    """What a file needs to have done by the rules: at a reboot, and after a migration."""
    return {"end_of_boot": _end_of_boot, "migrated": _migrated}


def _end_of_boot(tx: Transaction) -> None:
    from netalloc.ipam.reboot import end_of_boot

    end_of_boot(tx)


def _migrated(tx: Transaction) -> None:
    from netalloc.ipam.check import rebuild_ports

    rebuild_ports(tx)


def private_store() -> HostStore:
    """A memory store of its own, for a manager that touches no kernel."""
    from netalloc.store.memory import MemoryStore

    return HostStore(MemoryStore(), owned=True)


def shared_store() -> HostStore:
    """The memory store of this process for the caller's network namespace."""
    namespace, user = _namespace(), object()
    store = holding(_shared_lock, -1, "", lambda: _enter(namespace, user))
    host = HostStore(store, owned=False)
    host.shared = True
    host._teardown.push(lambda: holding(_shared_lock, -1, "", lambda: _leave(namespace, user)))
    return host


def _enter(namespace: tuple[int, int], user: object) -> MemoryStore:
    from netalloc.store.memory import MemoryStore

    store, users = _shared.setdefault(namespace, (MemoryStore(), set()))
    users.add(user)
    return store


def _leave(namespace: tuple[int, int], user: object) -> None:
    """The last one to leave takes the store with it; a second time is no error."""
    _, users = _shared.get(namespace, (None, set()))
    users.discard(user)
    if not users:
        _shared.pop(namespace, None)


def _forget_shared() -> None:
    """In a forked child: the parent's managers in memory are closed here, and so is its store."""
    global _shared_lock  # noqa: PLW0603  # another thread of the parent may have had it
    _shared_lock = Lock()
    _shared.clear()


os.register_at_fork(after_in_child=_forget_shared)


def _namespace() -> tuple[int, int]:
    status = os.stat("/proc/thread-self/ns/net")  # noqa: PTH116
    return status.st_dev, status.st_ino


def _truth(store: Store) -> str:
    """The place that a store keeps its truth in, in words that tell two of them apart."""
    path = getattr(store, "path", None)
    if path is None:
        return f"memory of process {os.getpid()}"
    lock = os.stat(f"{path}.lock")  # noqa: PTH116  # stays when a repair puts another file in the store's place
    return f"store {path} ({lock.st_dev}:{lock.st_ino})"

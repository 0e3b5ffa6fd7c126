"""A manager's mappings in the kernel, desired by all that share its store."""

from __future__ import annotations

from netalloc.errors import NetallocError, NotAllocatedError
from netalloc.logs import Log
from netalloc.manager.undo import attempt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from ipaddress import IPv4Address, IPv6Address
    from typing import Any

    from netalloc.model import PortMapping, ReconcileResult
    from netalloc.portmap.kernel import KernelMappings
    from netalloc.portmap.nftables.guard import Guard
    from netalloc.portmap.watch import Watch

logger = Log(__name__)


class ExclusiveMappings:
    """Mappings of this process alone, which go when it closes."""

    def __init__(self, kernel: KernelMappings) -> None:
        self._kernel = kernel
        self._is_set_up = False

    @property
    def guard(self) -> Guard | None:
        """What keeps the containers apart, where the backend has such."""
        return getattr(self._kernel.backend, "guard", None)

    def setup(self) -> None:
        """Make the fixed part; mappings that are there stay, until reconcile."""
        self._is_set_up = True
        self._kernel.setup()

    def apply(self, remove: list[PortMapping], add: list[PortMapping]) -> None:
        """Remove and add in one batch: all of it or nothing; flows stay (see stale_flows.py).

        What another program has taken away already is gone, which is what we want.
        """
        try:
            self._kernel.apply(add, remove, flush=False)
        except NotAllocatedError as error:
            there = set(self.present())
            present = [mapping for mapping in remove if mapping in there]
            if len(present) == len(remove):
                raise
            logger.warning("%s", error)
            self._kernel.apply(add, present, flush=False)

    def reconcile(self, desired: list[PortMapping]) -> ReconcileResult:
        """Make the kernel agree with the desired mappings."""
        return self._kernel.reconcile(desired)

    def watch(
        self,
        on_repair: Callable[[ReconcileResult], None] | None,
        repair: Callable[[], ReconcileResult],
        desired: Callable[[], list[PortMapping]],
        network: int,
        further: Callable[[], bool] | None,
    ) -> Watch:
        """Repair whenever another program changes the rules."""
        return self._kernel.watch(repair, on_repair)

    def present(self) -> list[PortMapping]:
        """What the kernel has."""
        return self._kernel.present()

    def differences(self, desired: Iterable[PortMapping]) -> Iterator[str]:
        """What the kernel lacks of the desired, and has besides, in words. O(mappings)."""
        wanted, present = set(desired), set(self.present())
        for mapping in sorted(wanted - present, key=repr):
            yield f"the kernel lacks {mapping}"
        for mapping in sorted(present - wanted, key=repr):
            yield f"the kernel has what is not desired: {mapping}"

    def stands(self, desired: list[PortMapping]) -> bool:
        """Whether the fixed part is there, as far as that can be told without making it."""
        backend = self._kernel.backend
        look = getattr(backend, "is_there", None)
        if look is not None:
            return bool(look())
        agrees = getattr(backend, "agrees", None)
        return agrees is None or bool(agrees(desired))

    @property
    def is_real(self) -> bool:
        """Whether there is a kernel behind it: not so with the null backend."""
        return self._kernel.is_real

    def forget_neighbours(
        self, bridge: str | None, ips: Sequence[IPv4Address | IPv6Address]
    ) -> None:
        """Forget at which MAC addresses these were, for they will be at others."""
        if self.is_real and ips and bridge is not None:
            from netalloc.host.neighbours import forget

            failure = attempt(lambda: forget(bridge, ips))
            if failure:  # a bridge that is gone has no neighbours
                logger.warning("neighbour entries stay: %s", failure)

    def cleanup(self) -> None:
        """Remove everything of ours from the kernel."""
        self._kernel.cleanup()
        self._is_set_up = False

    def close(self) -> None:
        """Remove everything of ours, if it was set up here; another may have set it up since."""
        try:
            if self._is_set_up:
                self.cleanup()
        finally:
            self._kernel.close()


class NoMappings(ExclusiveMappings):
    """The null backend's: what is published stands in the store, and nowhere else.

    A memory of its own would be of this process's changes alone, and would refuse a port that
    another process has released.
    """

    def __init__(self) -> None:
        """Nothing is made, and nothing of the backends is loaded."""

    def setup(self) -> None:
        """There is nothing to make."""

    def cleanup(self) -> None:
        """There is nothing to remove."""

    def close(self) -> None:
        """There is nothing to give back."""

    @property
    def guard(self) -> None:
        """Nothing is kept apart."""

    @property
    def is_real(self) -> bool:
        """There is no kernel behind it."""
        return False

    def present(self) -> list[PortMapping]:
        """Nothing is in the kernel."""
        return []

    def watch(self, *_: Any, **__: Any) -> Watch:
        """Raises NetallocError: there are no rules that could change."""
        raise NetallocError("the null backend makes no rules that could be watched")

    def apply(self, remove: list[PortMapping], add: list[PortMapping]) -> None:
        """There is nothing to change."""

    def reconcile(self, desired: list[PortMapping]) -> ReconcileResult:
        """It always agrees."""
        from netalloc.model import ReconcileResult

        return ReconcileResult()

    def differences(self, desired: Iterable[PortMapping]) -> Iterator[str]:
        """It never differs."""
        return iter(())


class SharedMappings(ExclusiveMappings):
    """Mappings that other processes make and remove as well: only the store knows them all."""

    def watch(
        self,
        on_repair: Callable[[ReconcileResult], None] | None,
        repair: Callable[[], ReconcileResult],
        desired: Callable[[], list[PortMapping]],
        network: int,
        further: Callable[[], bool] | None,
    ) -> Watch:
        """The same, in one process at a time; what others of the store change is no repair."""
        from netalloc.host.watch_turn import WatchTurn

        turn = WatchTurn(network)
        return self._kernel.watch(repair, on_repair, desired=desired, turn=turn, further=further)

    def close(self) -> None:
        """Give back sockets; the mappings live as long as their leases."""
        self._kernel.close()

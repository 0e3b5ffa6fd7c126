"""A manager's mappings in the kernel, desired by all that share its store."""

import logging
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Protocol, runtime_checkable

from netalloc.errors import NotAllocatedError
from netalloc.manager.undo import attempt, undo
from netalloc.model import PortMapping, ReconcileResult
from netalloc.portmap.backend import Backend
from netalloc.portmap.watch import Watch

logger = logging.getLogger(__name__)


@runtime_checkable
class Mapper(Protocol):
    """What is asked of a PortMapper."""

    backend: Backend

    def setup(self, *, adopt: bool = False, reconcile: bool = True) -> Any: ...
    def cleanup(self) -> None: ...
    def close(self) -> None: ...
    def map_many(self, mappings: Iterable[PortMapping], /) -> None: ...
    def unmap_many(
        self, mappings: Iterable[PortMapping], /, *, missing_ok: bool = False
    ) -> None: ...
    def apply(self, add: Sequence[PortMapping], remove: Sequence[PortMapping], /) -> None: ...
    def watch(
        self,
        on_repair: Callable[[ReconcileResult], None] | None = None,
        *,
        repair: Callable[[], ReconcileResult] | None = None,
    ) -> Watch: ...
    def reconcile(self, desired: Iterable[PortMapping] | None, /) -> ReconcileResult: ...


class ExclusiveMappings:
    """Mappings of this process alone: the PortMapper knows them all."""

    def __init__(self, mapper: Mapper) -> None:
        self._mapper = mapper
        self._is_set_up = False

    def setup(self) -> None:
        """Make the fixed part; what a crashed predecessor left is removed."""
        self._is_set_up = True
        self._mapper.setup()

    def apply(self, remove: list[PortMapping], add: list[PortMapping]) -> None:
        """Remove, then add: all of it or nothing."""
        if remove:
            try:
                self._mapper.unmap_many(remove)
            except NotAllocatedError as error:
                # Another program took them away already, which is what we want.
                logger.warning("%s", error)
                self._mapper.unmap_many(remove, missing_ok=True)
        if add:
            try:
                self._mapper.map_many(add)
            except BaseException as error:
                if remove:
                    undo([lambda: self._mapper.map_many(remove)], error)
                raise

    def reconcile(self, desired: list[PortMapping]) -> ReconcileResult:
        """Make the kernel agree with the desired mappings."""
        return self._mapper.reconcile(desired)

    def watch(
        self,
        on_repair: Callable[[ReconcileResult], None] | None,
        repair: Callable[[], ReconcileResult],
    ) -> Watch:
        """Repair whenever another program changes the rules."""
        return self._mapper.watch(on_repair, repair=repair)

    def present(self) -> list[PortMapping]:
        """What the kernel has."""
        return self._mapper.backend.mappings()

    @property
    def is_real(self) -> bool:
        """Whether there is a kernel behind it: not so with the null backend."""
        return self._mapper.backend.name in ("nftables", "iptables")

    def forget_neighbours(
        self, bridge: str | None, ips: Sequence[IPv4Address | IPv6Address]
    ) -> None:
        """Forget at which MAC addresses these were, for they will be at others."""
        old = [ip for ip in ips if isinstance(ip, IPv4Address)]
        if self.is_real and old and bridge is not None:
            from netalloc.host.neighbours import forget

            failure = attempt(lambda: forget(bridge, old))
            if failure:  # a bridge that is gone has no neighbours
                logger.warning("neighbour entries stay: %s", failure)

    def cleanup(self) -> None:
        """Remove everything of ours from the kernel."""
        self._mapper.cleanup()

    def close(self) -> None:
        """Remove everything of ours, if it was set up here; another may have set it up since."""
        try:
            if self._is_set_up:
                self._mapper.cleanup()
        finally:
            self._mapper.close()


class SharedMappings(ExclusiveMappings):
    """Mappings that other processes make and remove as well: only the store knows them all.

    So the PortMapper's own list is passed over, and removals and additions go in one batch.
    """

    def setup(self) -> None:
        """Make the fixed part; what is there stays."""
        self._mapper.setup(reconcile=False)

    def apply(self, remove: list[PortMapping], add: list[PortMapping]) -> None:
        """Remove and add in one batch: all of it or nothing."""
        try:
            self._mapper.apply(add, remove)
        except NotAllocatedError as error:
            there = set(self.present())
            present = [mapping for mapping in remove if mapping in there]
            if len(present) == len(remove):
                raise
            logger.warning("%s", error)
            self._mapper.apply(add, present)

    def close(self) -> None:
        """Give back sockets; the mappings live as long as their leases."""
        self._mapper.close()

"""A manager's mappings in the kernel, desired by whoever shares its store."""

import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Protocol, runtime_checkable

from netalloc.errors import NotAllocatedError
from netalloc.model import Mapping, Repairs
from netalloc.portmap.backend import Backend
from netalloc.portmap.watch import Watch

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

log = logging.getLogger(__name__)


@runtime_checkable
class Mapper(Protocol):
    """What is asked of a PortMapper."""

    backend: Backend

    def setup(self, *, adopt: bool = False, reconcile: bool = True) -> Any: ...
    def cleanup(self) -> None: ...
    def close(self) -> None: ...
    def map_many(self, mappings: Iterable[Mapping], /) -> None: ...
    def unmap_many(self, mappings: Iterable[Mapping], /, *, missing_ok: bool = False) -> None: ...
    def apply(self, add: Sequence[Mapping], remove: Sequence[Mapping], /) -> None: ...
    def watch(
        self,
        on_repair: Callable[[Repairs], None] | None = None,
        *,
        repair: Callable[[], Repairs] | None = None,
    ) -> Watch: ...
    def reconcile(self, desired: Iterable[Mapping] | None, /) -> Repairs: ...


def attempt(step: Callable[[], Any]) -> Exception | None:
    """What went wrong, for those who go on and report all of it at the end."""
    try:
        step()
    except Exception as failure:
        return failure
    return None


def undo(steps: Sequence[Callable[[], Any]], error: BaseException) -> bool:
    """Take every step; whether all succeeded. Failures are raised together with `error`."""
    failures = [failure for step in steps if (failure := attempt(step))]
    if failures and isinstance(error, Exception):
        raise ExceptionGroup("failed, and so did undoing it", [error, *failures]) from None
    if failures:
        log.error("undoing what %r had cut off failed: %s", error, failures)
    return not failures


class OwnKernel:
    """Mappings of this process alone: the PortMapper knows them all."""

    def __init__(self, mapper: Mapper) -> None:
        self._mapper = mapper

    def setup(self) -> None:
        """Make the fixed part; what a crashed predecessor left is removed."""
        self._mapper.setup()

    def apply(self, remove: list[Mapping], add: list[Mapping]) -> None:
        """Remove, then add: all of it or nothing."""
        if remove:
            try:
                self._mapper.unmap_many(remove)
            except NotAllocatedError as error:
                # Somebody took them away already, which is what we want.
                log.warning("%s", error)
                self._mapper.unmap_many(remove, missing_ok=True)
        if add:
            try:
                self._mapper.map_many(add)
            except BaseException as error:
                if remove:
                    undo([lambda: self._mapper.map_many(remove)], error)
                raise

    def reconcile(self, desired: list[Mapping]) -> Repairs:
        """Make the kernel agree with the desired mappings."""
        return self._mapper.reconcile(desired)

    def watch(
        self, on_repair: Callable[[Repairs], None] | None, repair: Callable[[], Repairs]
    ) -> Watch:
        """Repair whenever somebody else changes the rules."""
        return self._mapper.watch(on_repair, repair=repair)

    def present(self) -> list[Mapping]:
        """What the kernel has."""
        return self._mapper.backend.mappings()

    @property
    def touches(self) -> bool:
        """Whether there is a kernel behind it: not so with the null backend."""
        return self._mapper.backend.name in ("nftables", "iptables")

    def forget_neighbours(self, bridge: str, ips: Sequence[IPv4Address | IPv6Address]) -> None:
        """Forget at which MAC addresses these were, for they will be at others."""
        old = [ip for ip in ips if isinstance(ip, IPv4Address)]
        if self.touches and old:
            from netalloc.host.neighbours import forget

            failure = attempt(lambda: forget(bridge, old))
            if failure:  # a bridge that is gone has no neighbours
                log.warning("neighbour entries stay: %s", failure)

    def close(self) -> None:
        """Remove everything of ours."""
        try:
            self._mapper.cleanup()
        finally:
            self._mapper.close()


class SharedKernel(OwnKernel):
    """Mappings that other processes make and remove as well: only the store knows them all.

    So the PortMapper's own list is passed over, and removals and additions go in one batch.
    """

    def setup(self) -> None:
        """Make the fixed part; what is there stays."""
        self._mapper.setup(reconcile=False)

    def apply(self, remove: list[Mapping], add: list[Mapping]) -> None:
        """Remove and add in one batch: all of it or nothing."""
        try:
            self._mapper.apply(add, remove)
        except NotAllocatedError as error:
            there = set(self.present())
            present = [mapping for mapping in remove if mapping in there]
            if len(present) == len(remove):
                raise
            log.warning("%s", error)
            self._mapper.apply(add, present)

    def close(self) -> None:
        """Give back sockets; the mappings live as long as their leases."""
        self._mapper.close()

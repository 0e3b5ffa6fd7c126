"""Ending one by one what cannot be ended together: all that can be is freed."""

from __future__ import annotations

import sys
from functools import partial

from netalloc.logs import Log
from netalloc.manager.undo import attempt

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from netalloc.manager.leases import LeaseService
    from netalloc.store.records import Lease

log = Log(__name__)


def release_each(service: LeaseService, leases: Sequence[Lease]) -> None:
    """End leases one by one; all failures in one group."""
    failures = _failures([partial(service.release, lease) for lease in leases])
    if failures:
        raise ExceptionGroup("not everything was released", failures) from None


def release_in_steps(service: LeaseService, lease: Lease, first: Exception) -> None:
    """Free the ports of a lease one by one, and then the lease; all failures in one group.

    `first` is why it could not be at once.
    """
    rows = service.read(lambda tx: service.publications.of(tx, lease))
    if not rows:
        raise first
    failures = _failures([partial(service.unpublish_row, lease, row) for row in rows])
    if failures:
        # A mapping that could not be removed leads to this address: it may not have
        # another holder yet.
        raise ExceptionGroup(f"{service.name(lease)} was not released", failures)
    service.end(lease)
    log.warning("%s was released step by step after: %s", service.name(lease), first)


def _failures(steps: Sequence[Callable[[], Any]]) -> list[Exception]:
    return [failure for step in steps if (failure := attempt(step))]

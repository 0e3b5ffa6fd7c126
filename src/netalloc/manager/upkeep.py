"""What goes through all leases of a network, or all that the kernel has of it: no call waits."""

from __future__ import annotations

import sys
from functools import partial

from netalloc.ipam import gc
from netalloc.ipam.check import check as check_records
from netalloc.manager.leases import FAILURES, LeaseService
from netalloc.manager.undo import attempt

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from netalloc.ipam.change import Change
    from netalloc.model import PortMapping, ReconcileResult
    from netalloc.portmap.watch import Watch
    from netalloc.store.protocol import Transaction
    from netalloc.store.records import GcCandidate, Lease

_NOTED, _ENDED = 500, 100  # records in one change of collect(): some 20 ms each in a file


def collect(service: LeaseService, living: frozenset[str], grace: int) -> list[Lease]:
    """End the leases whose owners were dead at two looks, `grace` nanoseconds or more apart.

    The first look only notes them. A lease that was made, or asked for again, since then is
    another one, or is noted no longer. Leases without an owner are never judged. Returns
    those that were ended, some hundred in a change; goes on past what fails. O(leases), of
    which no lock is held for more than a part.
    """
    found = service.survey(lambda tx: gc.look(service.addresses, tx, living, grace))
    for some in gc.parts(found.cleared, _NOTED):
        service.run("gc", partial(_noted, gc.clear, some))
    for some in gc.parts(found.fresh, _NOTED):
        service.run("gc", partial(_noted, gc.note, some))
    ended: list[Lease] = []
    failures: list[Exception] = []
    for some in gc.parts(found.dead, _ENDED):
        _end_dead(service, some, ended, failures)
    if failures:
        raise ExceptionGroup("not everything was released", failures)
    return ended


def _noted(
    enter: Callable[[Transaction, list[GcCandidate]], None], some: list[GcCandidate], made: Change
) -> None:
    enter(made.tx, some)


def _end_dead(
    service: LeaseService,
    suspects: list[GcCandidate],
    ended: list[Lease],
    failures: list[Exception],
) -> None:
    def change(made: Change) -> list[Lease]:
        leases = gc.dead(made.tx, suspects)
        service.expire(made, leases)
        return leases

    try:
        ended += service.run("gc", change)
    except FAILURES:
        # Some mapping cannot be removed: end what can be ended, one by one.
        for lease in service.run("gc", lambda made: gc.dead(made.tx, suspects)):
            failure = attempt(partial(service.release, lease))
            if failure is None:
                ended.append(lease)
            else:
                failures.append(failure)


def reconcile(service: LeaseService) -> ReconcileResult:
    """Make the kernel agree with the store, and flush what was left; what was repaired."""
    repairs = service.committer.reconcile()
    if service.flows is not None:
        service.flows.finish()
    mended = service.attaching.reconcile() if service.mappings.is_real else ()
    if mended:
        from netalloc.model import ReconcileResult

        structure = (*repairs.structure, *mended)
        repairs = ReconcileResult(repairs.added, repairs.removed, structure)
    return repairs


def watch(service: LeaseService, on_repair: Callable[[ReconcileResult], None] | None) -> Watch:
    """Reconcile now, and when another program has changed what the kernel has."""
    network = service.network
    owners = network.backend == "iptables"  # they are part of its rules

    def desired() -> list[PortMapping]:
        return service.survey(lambda tx: service.publications.desired(tx, owners=owners))

    def guarded() -> bool:
        return not service.survey(service.guarding.differences)

    further = guarded if network.isolation == "guarded" else None
    repair = partial(reconcile, service)
    return service.mappings.watch(on_repair, repair, desired, network.number, further)


def check(service: LeaseService) -> list[str]:
    """Every invariant that does not hold, in words; empty when all is well. O(held)."""
    damage = service.committer.store.check()
    # Of a damaged file nothing further can be said with certainty.
    return damage or service.survey(lambda tx: [*check_records(tx)]) + check_kernel(service)


def check_kernel(service: LeaseService) -> list[str]:
    """What the kernel has otherwise than desired, seen while no change is being made."""
    mappings, publications = service.mappings, service.publications

    def look(tx: Transaction) -> list[str]:
        return list(mappings.differences(publications.desired(tx)))

    desired = service.survey(publications.desired)
    found: list[str] = []
    if service.network.isolation == "guarded" and service.survey(service.guarding.differences):
        found += service.committer.store.run("check", service.guarding.differences)
    if any(mappings.differences(desired)):
        # Perhaps of a change that another process is making right now: its turn comes first.
        found += service.committer.store.run("check", look)
    return found + (service.attaching.differences() if mappings.is_real else [])
